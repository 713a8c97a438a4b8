"""SB3's policy, for any distribution."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch as th
from stable_baselines3.common.distributions import (
    BernoulliDistribution,
    CategoricalDistribution,
    DiagGaussianDistribution,
    Distribution,
    MultiCategoricalDistribution,
    StateDependentNoiseDistribution,
)
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import Schedule
from torch import nn

BUILT_BY_SB3 = (
    DiagGaussianDistribution,
    StateDependentNoiseDistribution,
    CategoricalDistribution,
    MultiCategoricalDistribution,
    BernoulliDistribution,
)
"""The distributions that SB3's policies build; they refuse any other."""


class AnyDistributionPolicy(ActorCriticPolicy):
    """
    An ``ActorCriticPolicy`` with any distribution; with one of SB3's, everything is left to SB3.

    A subclass overrides :meth:`_choose_distribution`.
    """

    action_dist: Any

    def _choose_distribution(self) -> Distribution | None:
        """
        Make the distribution, before there are any layers.

        Its ``proba_distribution_net(latent_dim)`` returns the last layer, or the last layer and a parameter, which becomes the
        policy's ``log_std``. Its ``proba_distribution`` takes the output of the layer, and the parameter if there is one.

        :return: the distribution; ``None`` for the one that SB3 has for the action space
        """
        return None

    def _build(self, lr_schedule: Schedule) -> None:
        chosen = self._choose_distribution()
        action_dist = self.action_dist if chosen is None else chosen
        if isinstance(action_dist, BUILT_BY_SB3):
            self.action_dist = action_dist
            super()._build(lr_schedule)
            return

        def make_last_layer(latent_dim: int) -> nn.Module:
            made = action_dist.proba_distribution_net(latent_dim)
            if isinstance(made, tuple):
                made, self.log_std = made
            return made

        self.action_dist = _OnlyLastLayer(make_last_layer)
        super()._build(lr_schedule)
        self.action_dist = action_dist

    def _get_action_dist_from_latent(self, latent_pi: th.Tensor) -> Distribution:
        if isinstance(self.action_dist, BUILT_BY_SB3):
            return super()._get_action_dist_from_latent(latent_pi)
        log_std = getattr(self, "log_std", None)
        of_all_states = () if log_std is None else (log_std,)
        distribution: Distribution = self.action_dist.proba_distribution(self.action_net(latent_pi), *of_all_states)
        return distribution


class _OnlyLastLayer(BernoulliDistribution):
    """
    Stands in for a distribution while SB3 builds and initializes the networks.

    SB3 asks a Bernoulli distribution for nothing but its last layer.

    :param make_last_layer: makes the layer from the number of its inputs
    """

    def __init__(self, make_last_layer: Callable[[int], nn.Module]) -> None:
        super().__init__(1)
        self._make_last_layer = make_last_layer

    def proba_distribution_net(self, latent_dim: int) -> nn.Module:
        """Make the layer."""
        return self._make_last_layer(latent_dim)
