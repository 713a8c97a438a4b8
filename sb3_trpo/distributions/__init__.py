"""
Action distributions: one file for each kind, and ``registry.py``, which lists them.

A new kind is a new file with a subclass of :class:`~sb3_trpo.distributions.base.DistributionKind` and one line in the
registry.
"""
