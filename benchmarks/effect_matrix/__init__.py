"""The parts of `benchmarks/effect.py`: what is asked for, its cells, what runs them, and what they show."""
