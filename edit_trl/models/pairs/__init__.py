"""A batch of pairs, laid out and scored: from examples to tensors to per-token log-probabilities."""
