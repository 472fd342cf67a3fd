"""Rows: reading, checking and tokenizing dual CoTs, questions and answers."""
