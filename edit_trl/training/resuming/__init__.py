"""Stopping, checkpoints and resuming."""
