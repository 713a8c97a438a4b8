"""The list of known kinds of distributions, and finding the kind of a distribution in a list."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from sb3_trpo.distributions.base import DistributionKind
from sb3_trpo.distributions.bernoulli import Bernoulli
from sb3_trpo.distributions.categorical import Categorical
from sb3_trpo.distributions.gaussian import Gaussian
from sb3_trpo.distributions.product_kind import Product

CORE_KINDS: tuple[DistributionKind, ...] = (Gaussian(), Categorical(), Bernoulli(), Product())
"""Kinds of SB3's own distributions, and of their products."""


def find_kind(distribution: object, kinds: Sequence[DistributionKind]) -> DistributionKind | None:
    """
    Find the kind that lists the class of a distribution, or else its nearest base class.

    :param distribution: an SB3 distribution
    :param kinds: the kinds to look through; if two list the same class, the later one counts
    :return: the kind, ``None`` if there is none
    """
    by_class = {listed: kind for kind in kinds for listed in kind.distributions}
    for each in type(distribution).__mro__:
        if each in by_class:
            return by_class[each].bound_to(distribution, partial(find_kind, kinds=kinds))
    return None


def kind_of(distribution: object, kinds: Sequence[DistributionKind]) -> DistributionKind:
    """
    Find the kind of a distribution, which must be known.

    :param distribution: an SB3 distribution
    :param kinds: the kinds to look through
    :return: the kind
    :raises TypeError: if neither its class nor any base class is listed, with what to do about it
    """
    kind = find_kind(distribution, kinds)
    if kind is None:
        known = ", ".join(sorted(listed.__name__ for each in kinds for listed in each.distributions))
        raise TypeError(
            f"No Fisher metric is known for {type(distribution).__name__}; known distributions are {known} and their "
            "subclasses. For a distribution of your own, write a subclass of sb3_trpo.distributions.base.DistributionKind and "
            "add it to the algorithm: class MyTRPO(TRPO): distribution_kinds = (*TRPO.distribution_kinds, MyKind())."
        )
    return kind
