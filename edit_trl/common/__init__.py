"""Used by every other folder: errors, options and their checks, text, tables, files. No torch."""
