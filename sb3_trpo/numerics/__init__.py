"""Numerical optimization on vectors: depends on torch alone, and knows nothing of policies, rewards or users."""
