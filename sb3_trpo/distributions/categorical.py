"""One choice among options, or several independent ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch as th
from stable_baselines3.common.distributions import CategoricalDistribution, Distribution, MultiCategoricalDistribution
from stable_baselines3.common.policies import ActorCriticPolicy

from sb3_trpo.distributions.base import DistributionKind, Head, HeadLinearization, Sampler
from sb3_trpo.numerics.gauss_newton import Metric, Outputs


class Categorical(DistributionKind):
    """Independent choices, one or several; z holds the log-probabilities of each, shape ``(n_states, n_options)``."""

    distributions: ClassVar[tuple[type[Distribution], ...]] = (CategoricalDistribution, MultiCategoricalDistribution)

    def parameters(self, distribution: Distribution) -> Outputs:
        """Read the normalized log-probabilities of each choice."""
        assert isinstance(distribution, (CategoricalDistribution, MultiCategoricalDistribution))
        choices = distribution.distribution
        return tuple(choice.logits for choice in (choices if isinstance(choices, list) else [choices]))

    def kl(self, old: Outputs, new: Outputs) -> th.Tensor:
        """Sum ``p_old (log p_old - log p_new)`` over the options of every choice; an impossible option adds nothing."""
        choices = zip(old, new, strict=True)
        return th.stack([relative_entropy(old_log, new_log).sum(-1) for old_log, new_log in choices]).sum(0)

    def fisher_metric(self, z: Outputs) -> Metric:
        """Multiply each choice by ``diag(p) - p p^T``."""
        probabilities = [log_probability.exp() for log_probability in z]

        def metric(dz: Outputs) -> Outputs:
            return tuple(p * (d - (p * d).sum(-1, keepdim=True)) for p, d in zip(probabilities, dz, strict=True))

        return metric

    def head(self, policy: ActorCriticPolicy) -> Head | None:
        """Describe SB3's two distributions, but not subclasses, which may compute anything."""
        action_dist = policy.action_dist
        if type(action_dist) is CategoricalDistribution:
            return CategoricalHead(action_dist, (action_dist.action_dim,))
        if type(action_dist) is MultiCategoricalDistribution:
            return CategoricalHead(action_dist, tuple(action_dist.action_dims))
        return None


def relative_entropy(old_log: th.Tensor, new_log: th.Tensor) -> th.Tensor:
    """
    Compute each option's term ``p_old (log p_old - log p_new) - p_old + p_new``; the last two sum to 0 over the options.

    With ``d = log p_new - log p_old`` this is ``p_old (expm1(d) - d)``. It is never negative, and rounding errors of d enter
    only multiplied by d, so the small steps of a trust region keep their digits. Where ``p_old`` is 0, only ``p_new`` is left.

    :param old_log: log-probabilities of the old policy
    :param new_log: log-probabilities of the new policy, of the same shape
    :return: the terms, of the same shape, in nats
    """
    old, difference = old_log.exp(), new_log - old_log
    return th.where(old > 0.0, old * (difference.expm1() - difference), new_log.exp())


@dataclass(frozen=True)
class CategoricalHead(Head):
    """
    The output holds the logits of all choices, one after another.

    :param action_dist: the policy's distribution object
    :param n_options: number of options of each choice
    """

    action_dist: Distribution
    n_options: tuple[int, ...]

    def distribution(self, output: th.Tensor) -> Distribution:
        """Build the distribution, which normalizes the logits."""
        return self.action_dist.proba_distribution(output)

    def linearize(self, output: th.Tensor) -> HeadLinearization:
        """
        Split the logits by choice.

        The derivative leaves out their normalization. It subtracts the same number from all logits of a choice, which the
        metric maps to 0.
        """

        def jvp(d_output: th.Tensor, d_parameters: Sequence[th.Tensor]) -> Outputs:
            return th.split(d_output, list(self.n_options), dim=1)

        def vjp(u: Outputs) -> tuple[th.Tensor, list[th.Tensor]]:
            return (u[0] if len(u) == 1 else th.cat(u, dim=1)), []

        return HeadLinearization(jvp, vjp)

    def sampler(self, output: th.Tensor) -> Sampler:
        """Build a sampler."""
        races = [ExponentialRace(logits) for logits in th.split(output, list(self.n_options), dim=1)]
        return races[0] if len(races) == 1 else SeveralRaces(races)


class ExponentialRace:
    """
    Samples one choice as ``th.multinomial`` does, without its argument checks, which take longer than the sampling.

    Every option gets an exponential time with rate ``p_i``; the option with the shortest time is chosen.

    :param logits: buffer of the actor's output, or a part of it, shape ``(n_envs, n_options)``
    """

    def __init__(self, logits: th.Tensor) -> None:
        self._clocks = th.empty_like(logits, memory_format=th.contiguous_format)
        self._times, self._logits = self._clocks.numpy(), logits.numpy()

    def draw(self) -> None:
        """Draw times with rate 1."""
        self._clocks.exponential_()

    def actions(self) -> np.ndarray:
        """Find the smallest ``time / p``, shape ``(n_envs,)``: the largest ``log p - log time``."""
        shifted = self._logits - self._logits.max(axis=-1, keepdims=True)  # a large common offset would cost digits
        choices: np.ndarray = (shifted - np.log(self._times)).argmax(axis=-1)
        return choices


class SeveralRaces:
    """
    Samples several choices.

    :param races: a sampler for each choice, in the order in which SB3 samples them
    """

    def __init__(self, races: Sequence[ExponentialRace]) -> None:
        self._races = races

    def draw(self) -> None:
        """Draw the times of all choices."""
        for race in self._races:
            race.draw()

    def actions(self) -> np.ndarray:
        """Stack the choices, shape ``(n_envs, n_choices)``."""
        return np.stack([race.actions() for race in self._races], axis=1)
