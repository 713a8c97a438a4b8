"""Simulators whose state is not among the attributes of their environments."""
