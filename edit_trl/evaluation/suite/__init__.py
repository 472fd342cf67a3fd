"""`edit-trl suite`: whether a model prefers the correct chains."""
