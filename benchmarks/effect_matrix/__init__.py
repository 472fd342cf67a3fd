"""The parts of `benchmarks/effect.py`: the matrix, its cells, the workers that run them, and the results."""
