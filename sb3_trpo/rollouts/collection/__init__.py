"""Collecting rollouts: the fast loop and what it needs, and what SB3's own loop is given."""
