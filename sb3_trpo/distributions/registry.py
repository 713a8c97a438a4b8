"""The list of known kinds of distributions, and finding the kind of a distribution in a list."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from gymnasium import spaces
from stable_baselines3.common.distributions import Distribution

from sb3_trpo.distributions.base import DistributionKind
from sb3_trpo.distributions.bernoulli import Bernoulli
from sb3_trpo.distributions.beta import Beta, BetaDistribution
from sb3_trpo.distributions.categorical import Categorical
from sb3_trpo.distributions.gaussian import Gaussian
from sb3_trpo.distributions.product_kind import Product

CORE_KINDS: tuple[DistributionKind, ...] = (Gaussian(), Categorical(), Bernoulli(), Beta(), Product())
"""Kinds of the distributions of SB3's policies and of ours."""
CHOICES: dict[str, Callable[[spaces.Space[Any]], Distribution]] = {"beta": BetaDistribution}
"""Distributions that are chosen by name, each made from the plain action space."""


def chosen_distribution(
    name: str | None, action_space: spaces.Space[Any], use_sde: bool = False, log_std_init: float = 0.0
) -> Distribution | None:
    """
    Make the distribution that the user has chosen.

    :param name: one of :data:`CHOICES`
    :param action_space: the plain action space
    :param use_sde: whether the policy explores by gSDE, which is Gaussian
    :param log_std_init: initial value of a parameter that only Gaussians have
    :return: the distribution; ``None`` without a name
    :raises ValueError: if the name is unknown, or the distribution does not fit the other arguments
    """
    if name is None:
        return None
    if not isinstance(name, str) or name not in CHOICES:
        known = " or ".join(f'"{each}"' for each in CHOICES)
        raise ValueError(
            f"action_distribution is {name!r}, but must be {known}, or None for the one that Stable-Baselines3 has "
            "for the action space."
        )
    if use_sde or log_std_init:
        argument = "use_sde is True" if use_sde else f"log_std_init is {log_std_init}"
        raise ValueError(f'{argument}, which is for Gaussians, but action_distribution is "{name}": leave one of them out.')
    return CHOICES[name](action_space)


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
