"""Training a student: options, objective, trainer, and what a run saves."""
