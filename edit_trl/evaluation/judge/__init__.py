"""`edit-trl judge`: a large model scores the chains of several models."""
