"""How much memory a run will need, estimated without running it."""
