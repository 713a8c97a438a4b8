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
        """Describe SB3's diagonal Gaussian, and its state-dependent noise."""
        action_dist = policy.action_dist
        if type(action_dist) is StateDependentNoiseDistribution:
            return StateDependentHead(action_dist, policy.log_std)
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


@dataclass(frozen=True)
class StateDependentHead(Head):
    """
    Generalized state-dependent exploration (gSDE, Raffin et al. 2022, arXiv:2005.05719, Eq. 7 and 8).

    The output is the mean, and behind it the last hidden layer h. The noise is ``h E`` with a matrix E of independent normal
    entries, so ``std^2 = h^2 sigma^2 + epsilon`` with the standard deviations ``sigma`` of the entries of E, a function of
    log_std.

    :param action_dist: the policy's distribution object
    :param log_std: psi, shape ``(n_hidden, n_actions)``, or ``(n_hidden, 1)`` without ``full_std``; ``(n_states, ...)``, if
        it differs from state to state
    """

    action_dist: StateDependentNoiseDistribution
    log_std: th.Tensor
    needs_last_hidden = True

    @property
    def parameters(self) -> list[th.Tensor]:
        """What sigma is computed from."""
        return [self.log_std]

    def with_parameters(self, parameters: Sequence[th.Tensor]) -> Head:
        """Build the same head on another ``log_std``."""
        (log_std,) = parameters
        return StateDependentHead(self.action_dist, log_std)

    def _split(self, output: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        n_actions = self.action_dist.action_dim
        return output[:, :n_actions], output[:, n_actions:]

    def distribution(self, output: th.Tensor) -> Distribution:
        """Build the Gaussian; the policy's own method can do so if ``log_std`` is that of all states."""
        mean, hidden = self._split(output)
        if self.log_std.dim() == 2:
            return self.action_dist.proba_distribution(mean, self.log_std, hidden)
        variance = th.bmm(hidden[:, None].square(), self.action_dist.get_std(self.log_std).square()).squeeze(1)
        self.action_dist.distribution = th.distributions.Normal(mean, (variance + self.action_dist.epsilon).sqrt())
        return self.action_dist

    def linearize(self, output: th.Tensor) -> HeadLinearization:
        """
        Differentiate ``std``: with ``learn_features`` in h too.

        ``std d std = h^2 (sigma d sigma) + (h d h) sigma^2``, and ``d sigma = sigma' d log_std``.
        """
        _, hidden = self._split(output)
        n_actions, learns_features = self.action_dist.action_dim, self.action_dist.learn_features
        log_std = self.log_std.detach()
        sigma = self.action_dist.get_std(log_std)
        squares, variances = hidden.square(), sigma.square()
        std = (squares.mm(variances) + self.action_dist.epsilon).sqrt()
        slope = sigma * self._slope(log_std)  # of sigma^2 / 2 in log_std

        def jvp(d_output: th.Tensor, d_parameters: Sequence[th.Tensor]) -> Outputs:
            (d_log_std,) = d_parameters
            d_mean, d_hidden = self._split(d_output)
            d_half_variance = squares.mm(slope * d_log_std)
            if learns_features:
                d_half_variance = d_half_variance + (hidden * d_hidden).mm(variances)
            return d_mean, d_half_variance / std

        def vjp(u: Outputs) -> tuple[th.Tensor, list[th.Tensor]]:
            of_mean, of_std = u
            weighted = of_std / std
            of_log_std = squares.t().mm(weighted) * slope
            if log_std.shape[1] < n_actions:
                of_log_std = of_log_std.sum(1, keepdim=True)
            of_hidden = hidden * weighted.mm(variances.t()) if learns_features else th.zeros_like(hidden)
            return th.cat([of_mean, of_hidden], dim=1), [of_log_std]

        return HeadLinearization(jvp, vjp)

    def _slope(self, log_std: th.Tensor) -> th.Tensor:
        """Differentiate sigma in log_std, entry by entry."""
        if not self.action_dist.use_expln:
            return log_std.exp()
        positive = log_std > 0
        return th.where(positive, 1.0 / (1.0 + log_std.clamp(min=0.0) + self.action_dist.epsilon), log_std.exp())

    def sampler(self, output: th.Tensor) -> StateDependentSampler:
        """Build a sampler."""
        return StateDependentSampler(self.action_dist, output)


class StateDependentSampler:
    """
    Adds gSDE's noise, whose matrices the rollout loop has drawn before.

    :param action_dist: holds the matrices
    :param output: buffer of mean and last hidden layer, shape ``(n_envs, n_actions + n_hidden)``
    """

    def __init__(self, action_dist: StateDependentNoiseDistribution, output: th.Tensor) -> None:
        n_actions = action_dist.action_dim
        self._action_dist = action_dist
        self._mean, self._hidden = output.numpy()[:, :n_actions], output.numpy()[:, n_actions:]
        self._drawn: th.Tensor | None = None

    def draw(self) -> None:
        """Read the matrices, if they are new: one for all environments, or one for each. They are NaN if log_std is."""
        action_dist, n_envs = self._action_dist, len(self._mean)
        if action_dist.exploration_mat is not self._drawn:
            is_single = n_envs == 1 or n_envs != len(action_dist.exploration_matrices)
            matrices = action_dist.exploration_mat if is_single else action_dist.exploration_matrices
            self._matrices = matrices.detach().cpu().numpy()
            if np.isnan(self._matrices).any():
                raise ValueError(NAN_ADVICE)
            self._drawn = action_dist.exploration_mat

    def actions(self) -> np.ndarray:
        """Add the noise, and squash the sum if the policy does."""
        is_single = self._matrices.ndim == 2
        noise = self._hidden @ self._matrices if is_single else (self._hidden[:, None] @ self._matrices)[:, 0]
        actions: np.ndarray = self._mean + noise
        return actions if self._action_dist.bijector is None else np.tanh(actions)
