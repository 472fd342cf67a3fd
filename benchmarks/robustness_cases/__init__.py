"""Bad inputs of every kind for `robustness.py`: one module per area, and what runs and judges them."""
