"""A batch of pairs, laid out and scored: examples -> tensors -> per-token log-probabilities."""
