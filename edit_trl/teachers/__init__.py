"""Dual CoTs from a teacher, or from the student's own mistakes."""
