"""
Action distributions: one file for each kind, and ``registry.py``, which lists them.

A new kind is a new file with a subclass of :class:`~sb3_trpo.distributions.base.DistributionKind` and one line in the
registry, or in the class attribute ``distribution_kinds`` of an algorithm. SB3's policies build only their own distributions,
and ``policy.py`` any. A distribution that users may choose by name also has a line in ``registry.CHOICES``. One that needs a
policy of its own names it in the kind's ``policies``, so that it is differentiated by hand and collected by the fast loop.
"""
