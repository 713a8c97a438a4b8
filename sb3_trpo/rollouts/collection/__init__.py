"""Collecting rollouts, by the fast loop or by SB3's own."""
