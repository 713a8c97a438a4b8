"""
Action distributions: one file for each kind, and ``registry.py``, which lists them.

A new kind is a new file with a subclass of :class:`~sb3_trpo.distributions.base.DistributionKind` and one line in the
registry, or in the class attribute ``distribution_kinds`` of an algorithm. SB3's policies build only their own distributions:
the file also holds a subclass of ``ActorCriticPolicy`` that overrides ``_build`` and ``_get_action_dist_from_latent``, and the
kind names it in ``policies`` so that it is differentiated by hand and collected by the fast loop.
"""
