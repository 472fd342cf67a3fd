"""Models that answer or score: loading, identity, decoding, generation and merging."""
