"""What every other folder may use: errors, options, text, tables and whole files. Imports no torch."""
