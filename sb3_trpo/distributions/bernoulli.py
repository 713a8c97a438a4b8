"""Independent bits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch as th
from stable_baselines3.common.distributions import BernoulliDistribution, Distribution
from stable_baselines3.common.policies import ActorCriticPolicy
from torch.nn.functional import logsigmoid

from sb3_trpo.distributions.base import DistributionKind, Head, HeadLinearization
from sb3_trpo.distributions.categorical import relative_entropy
from sb3_trpo.numerics.gauss_newton import Metric, Outputs


class Bernoulli(DistributionKind):
    """Independent bits, ``z = (logits,)`` of shape ``(n_states, n_bits)``."""

    distributions = (BernoulliDistribution,)

    def parameters(self, distribution: Distribution) -> Outputs:
        """Read the logits."""
        assert isinstance(distribution, self.distributions)
        return (distribution.distribution.logits,)

    def kl(self, old: Outputs, new: Outputs) -> th.Tensor:
        """Sum ``p_old (log p_old - log p_new) + (1 - p_old) (log(1 - p_old) - log(1 - p_new))`` over the bits."""
        (old_logits,), (new_logits,) = old, new
        one = relative_entropy(logsigmoid(old_logits), logsigmoid(new_logits))
        zero = relative_entropy(logsigmoid(-old_logits), logsigmoid(-new_logits))
        return (one + zero).flatten(1).sum(1)

    def fisher_metric(self, z: Outputs) -> Metric:
        """Scale by ``p (1 - p)``."""
        variance = z[0].sigmoid() * (-z[0]).sigmoid()
        return lambda dz: (variance * dz[0],)

    def head(self, policy: ActorCriticPolicy) -> Head | None:
        """Describe SB3's distribution, but not subclasses, which may compute anything."""
        action_dist = policy.action_dist
        return BernoulliHead(action_dist) if type(action_dist) is BernoulliDistribution else None


@dataclass(frozen=True)
class BernoulliHead(Head):
    """
    The output holds the logits.

    :param action_dist: the policy's distribution object
    """

    action_dist: BernoulliDistribution

    def distribution(self, output: th.Tensor) -> Distribution:
        """Build the distribution."""
        return self.action_dist.proba_distribution(output)

    def linearize(self, output: th.Tensor) -> HeadLinearization:
        """Differentiate: z is the output."""

        def jvp(d_output: th.Tensor, d_parameters: Sequence[th.Tensor]) -> Outputs:
            return (d_output,)

        def vjp(u: Outputs) -> tuple[th.Tensor, list[th.Tensor]]:
            return u[0], []

        return HeadLinearization(jvp, vjp)

    def sampler(self, output: th.Tensor) -> BernoulliSampler:
        """Build a sampler."""
        return BernoulliSampler(output)


class BernoulliSampler:
    """
    Samples bits.

    :param logits: buffer of the actor's output, shape ``(n_envs, n_bits)``
    """

    def __init__(self, logits: th.Tensor) -> None:
        self._logits = logits

    def draw(self) -> None:
        """Draw the bits themselves: torch compares its random numbers with the probabilities as it draws them."""
        self._bits = th.bernoulli(self._logits.sigmoid())

    def actions(self) -> np.ndarray:
        """Return the bits."""
        bits: np.ndarray = self._bits.numpy()
        return bits
