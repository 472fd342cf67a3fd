"""`edit-trl evaluate`: a model answers questions and its answers are checked."""
