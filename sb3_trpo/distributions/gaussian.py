"""Gaussian actions: independent dimensions with a learned standard deviation, or SB3's state-dependent noise (gSDE)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch as th
from stable_baselines3.common.distributions import (
    DiagGaussianDistribution,
    Distribution,
    StateDependentNoiseDistribution,
)
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy

from sb3_trpo.distributions.base import NAN_ADVICE, DistributionKind, Head, HeadLinearization
from sb3_trpo.numerics.gauss_newton import Metric, Outputs


class Gaussian(DistributionKind):
    """
    Independent normal actions, ``z = (mean, std)``, each of shape ``(n_states, n_actions)``.

    Squashing by tanh changes neither KL nor metric, because it is a bijection.
    """

    distributions = (DiagGaussianDistribution, StateDependentNoiseDistribution)

    def parameters(self, distribution: Distribution) -> Outputs:
        """Read mean and standard deviation."""
        assert isinstance(distribution, self.distributions)
        return distribution.distribution.mean, distribution.distribution.stddev

    def kl(self, old: Outputs, new: Outputs) -> th.Tensor:
        """
        Sum ``(exp(2 rho) - 1 - 2 rho) / 2 + ((mean_old - mean_new) / std_new)^2 / 2`` with ``rho = log(std_old / std_new)``.

        ``expm1`` keeps the digits that ``std_old^2 / std_new^2 - 1`` would cancel for the small steps of a trust region.
        """
        (old_mean, old_std), (new_mean, new_std) = old, new
        double_rho = 2.0 * (old_std / new_std).log()
        shift = (old_mean - new_mean) / new_std
        return 0.5 * (double_rho.expm1() - double_rho + shift.square()).flatten(1).sum(1)

    def fisher_metric(self, z: Outputs) -> Metric:
        """Scale by ``1 / std^2`` for the mean and ``2 / std^2`` for the standard deviation."""
        precision = z[1].pow(-2)
        return lambda dz: (precision * dz[0], 2.0 * precision * dz[1])

    def head(self, policy: ActorCriticPolicy) -> Head | None:
        """Describe SB3's diagonal Gaussian. With gSDE the standard deviation depends on the last hidden layer: no head."""
        action_dist = policy.action_dist
        return GaussianHead(action_dist, policy.log_std) if type(action_dist) is DiagGaussianDistribution else None

    def diagnostics(self, policy: BasePolicy) -> dict[str, float]:
        """Average the standard deviation over all entries of ``log_std``, as sb3-contrib does."""
        log_std = getattr(policy, "log_std", None)
        return {} if log_std is None else {"std": float(log_std.detach().exp().mean())}


@dataclass(frozen=True)
class GaussianHead(Head):
    """
    The mean is the output, and the standard deviation is ``exp(log_std)`` at every state.

    :param action_dist: the policy's distribution object
    :param log_std: psi, shape ``(n_actions,)`` or ``(n_states, n_actions)``
    """

    action_dist: DiagGaussianDistribution
    log_std: th.Tensor

    @property
    def parameters(self) -> list[th.Tensor]:
        """The logarithm of the standard deviation."""
        return [self.log_std]

    def with_parameters(self, parameters: Sequence[th.Tensor]) -> Head:
        """Build the same head on another ``log_std``."""
        (log_std,) = parameters
        return GaussianHead(self.action_dist, log_std)

    def distribution(self, output: th.Tensor) -> Distribution:
        """Build the Gaussian."""
        return self.action_dist.proba_distribution(output, self.log_std)

    def linearize(self, output: th.Tensor) -> HeadLinearization:
        """Differentiate: ``d mean = d output``, and ``d std = std * d log_std`` at every state."""
        std = self.log_std.detach().exp()

        def jvp(d_output: th.Tensor, d_parameters: Sequence[th.Tensor]) -> Outputs:
            (d_log_std,) = d_parameters
            return d_output, (std * d_log_std).expand_as(d_output)

        def vjp(u: Outputs) -> tuple[th.Tensor, list[th.Tensor]]:
            of_mean, of_std = u
            return of_mean, [(std * of_std).sum(0)]

        return HeadLinearization(jvp, vjp)

    def sampler(self, output: th.Tensor) -> GaussianSampler:
        """Build a sampler."""
        return GaussianSampler(output, self.log_std)


class GaussianSampler:
    """
    Samples ``mean + std * noise``.

    :param mean: buffer of the actor's output, shape ``(n_envs, n_actions)``
    :param log_std: shape ``(n_actions,)``, on the CPU
    """

    def __init__(self, mean: th.Tensor, log_std: th.Tensor) -> None:
        self._mean = mean.numpy()
        self._noise = th.empty_like(mean)
        self._noise_array = self._noise.numpy()
        self._log_std = log_std.detach()
        self._log_std_array = self._log_std.numpy()
        self._compute_std()

    def _compute_std(self) -> None:
        """Compute the exponential with torch: NumPy's may differ in the last bit."""
        self._last_log_std = self._log_std_array.copy()
        self._std = self._log_std.exp().numpy()

    def draw(self) -> None:
        """Draw standard normal noise."""
        # A callback may have written to log_std.data, which no version counter shows: compare the numbers themselves.
        if not (self._log_std_array == self._last_log_std).all():
            self._compute_std()
            if np.isnan(self._std).any():
                raise ValueError(NAN_ADVICE)
        self._noise.normal_()

    def actions(self) -> np.ndarray:
        """Scale and shift the noise."""
        actions: np.ndarray = self._mean + self._noise_array * self._std
        return actions
