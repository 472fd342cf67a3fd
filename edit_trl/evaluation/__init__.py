"""Evaluation of a student, one folder per command, over the runs in `runs/`."""
