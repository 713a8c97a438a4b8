"""Beta-distributed actions: bounded, so that nothing is clipped at the ends of a Box."""

from __future__ import annotations

from typing import Any

import torch as th
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.type_aliases import Schedule
from torch import nn
from torch.distributions import Beta

from sb3_trpo import TRPO, MlpPolicy
from sb3_trpo.distributions.base import DistributionKind
from sb3_trpo.numerics.gauss_newton import Metric, Outputs

EDGE = 1e-6
"""Distance that actions keep from the ends of the interval, where the log-probability is infinite."""


class BetaDistribution(Distribution):
    """
    Independent actions ``2 u - 1`` in (-1, 1) with ``u ~ Beta(a, b)``, a and b above 1: each has a single mode inside.

    :param n_actions: number of dimensions
    """

    def __init__(self, n_actions: int) -> None:
        super().__init__()
        self.n_actions = n_actions

    def proba_distribution_net(self, latent_dim: int) -> nn.Module:
        """Make the layer that computes a and b, before they are made positive."""
        return nn.Linear(latent_dim, 2 * self.n_actions)

    def proba_distribution(self, output: th.Tensor) -> BetaDistribution:
        """Build the distribution from the output of that layer."""
        a, b = (1.0 + nn.functional.softplus(output)).chunk(2, dim=1)
        self.distribution = Beta(a, b)
        return self

    def log_prob(self, actions: th.Tensor) -> th.Tensor:
        """Sum the log-probabilities over the dimensions; ``d action = 2 du``."""
        u = ((actions + 1.0) / 2.0).clamp(EDGE, 1.0 - EDGE)
        return (self.distribution.log_prob(u) - th.log(th.tensor(2.0))).sum(1)

    def entropy(self) -> th.Tensor:
        """Sum the entropies over the dimensions."""
        return (self.distribution.entropy() + th.log(th.tensor(2.0))).sum(1)

    def sample(self) -> th.Tensor:
        """Draw an action."""
        return 2.0 * self.distribution.sample().clamp(EDGE, 1.0 - EDGE) - 1.0

    def mode(self) -> th.Tensor:
        """Return the most likely action, ``u = (a - 1) / (a + b - 2)``."""
        return 2.0 * self.distribution.mode - 1.0

    def actions_from_params(self, output: th.Tensor, deterministic: bool = False) -> th.Tensor:
        """Choose actions."""
        return self.proba_distribution(output).get_actions(deterministic)

    def log_prob_from_params(self, output: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """Draw actions, and compute their log-probabilities."""
        actions = self.actions_from_params(output)
        return actions, self.log_prob(actions)


class BetaPolicy(MlpPolicy):
    """``MlpPolicy`` with a :class:`BetaDistribution`, for actions in a bounded Box."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._squash_output = True  # SB3 then scales actions from (-1, 1) to the Box

    def _build(self, lr_schedule: Schedule) -> None:
        super()._build(lr_schedule)  # with the Gaussian that SB3 has for a Box
        del self.log_std
        self.action_dist = BetaDistribution(self.action_space.shape[0])
        self.action_net = self.action_dist.proba_distribution_net(self.mlp_extractor.latent_dim_pi)
        self.init_weights(self.action_net, gain=0.01)  # as SB3 initializes the last layer
        self.optimizer = self.optimizer_class(self.parameters(), lr=lr_schedule(1), **self.optimizer_kwargs)

    def _get_action_dist_from_latent(self, latent_pi: th.Tensor) -> Distribution:
        return self.action_dist.proba_distribution(self.action_net(latent_pi))


class BetaKind(DistributionKind):
    """Independent Beta distributions, ``z = (a, b)``, each of shape ``(n_states, n_actions)``."""

    distributions = (BetaDistribution,)

    def parameters(self, distribution: Distribution) -> Outputs:
        """Read a and b."""
        assert isinstance(distribution, BetaDistribution)
        return distribution.distribution.concentration1, distribution.distribution.concentration0

    def kl(self, old: Outputs, new: Outputs) -> th.Tensor:
        """Sum the divergences over the dimensions; a common change of variables leaves them as they are."""
        return th.distributions.kl_divergence(Beta(*old), Beta(*new)).sum(1)

    def fisher_metric(self, z: Outputs) -> Metric:
        """Multiply by the Hessian of the log-normalizer: trigamma of a and of b, less trigamma of their sum."""
        of_a, of_b, of_both = (th.polygamma(1, each) for each in (z[0], z[1], z[0] + z[1]))
        return lambda dz: (of_a * dz[0] - of_both * (dz[0] + dz[1]), of_b * dz[1] - of_both * (dz[0] + dz[1]))


class BetaTRPO(TRPO):
    """``TRPO`` that knows the Beta distribution."""

    distribution_kinds = (*TRPO.distribution_kinds, BetaKind())
