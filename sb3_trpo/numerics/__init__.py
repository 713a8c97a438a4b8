"""Numerical optimisation on flat vectors: imports torch and itself, and knows nothing of policies or environments."""
