"""The memory that a run will need, estimated without running it."""
