"""Collecting rollouts, checking them, and reading them for the update."""
