"""
Beta-distributed actions, for a Box with bounds.

Source: Chou, Maturana and Scherer 2017, "Improving Stochastic Policy Gradients in Continuous Control with Deep Reinforcement
Learning using the Beta Distribution" (ICML). A Gaussian gives actions beyond the bounds, which are clipped before they act.
A Beta distribution gives none, so the action that acts is the one whose probability is learned.

=======  ============================================================================================
x        output of the actor's last layer, ``(n_states, 2 n_actions)``: first for alpha, then for beta
alpha    ``1 + softplus(x)``. With alpha and beta above 1 the density has one mode and is bounded
u        an action as a share of the way from low to high, ``action = low + (high - low) u``
psi_n    the polygamma functions: psi_0 is the derivative of lgamma, psi_1 that of psi_0
=======  ============================================================================================

``lgamma(alpha)`` grows like ``alpha log(alpha)``, while divergences between policies are far below 1: in float32 the
differences would be rounding errors. So they are computed in float64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import nn
from torch.nn.functional import softplus

from sb3_trpo.distributions.base import NAN_ADVICE, DistributionKind, Head, HeadLinearization
from sb3_trpo.numerics.beta_function import log_beta_function, mean_logs
from sb3_trpo.numerics.gauss_newton import Metric, Outputs
from sb3_trpo.numerics.torch_private import standard_gamma

EDGE = 2.0**-24
"""Smallest share of the range between an action and a bound, where the density may be 0: the resolution of float32 at 1."""


class BetaDistribution(Distribution):
    """
    Independent actions between the bounds of a Box.

    Log-probabilities and entropy are those of the action in the environment's unit: scaling u to it is included.

    :param action_space: a Box of floating-point numbers with bounds
    :raises ValueError: if it is anything else, with what to do
    """

    distribution: th.distributions.Beta

    def __init__(self, action_space: spaces.Space[Any]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # SB3's, without types
        box = bounded_box(action_space)
        low, high = (bound.astype(np.float64).ravel() for bound in (box.low, box.high))
        # Actions are float32, where the number next to a bound may be further from it than EDGE.
        lowest = np.maximum(np.nextafter(low.astype(np.float32), np.float32(np.inf)), low + EDGE * (high - low))
        highest = np.minimum(np.nextafter(high.astype(np.float32), np.float32(-np.inf)), high - EDGE * (high - low))
        if not (lowest < highest).all():
            raise ValueError(
                f'action_distribution is "beta", but between some bounds of {box} float32 has no numbers: widen them, or take '
                "constant actions out of the space."
            )
        self.action_dim = len(low)
        self.bounds = low, high, lowest, highest
        """Low, high, and the lowest and highest action, in float64, each of shape ``(n_actions,)``."""

    def proba_distribution_net(self, latent_dim: int) -> nn.Module:
        """Make the last layer, whose output is x."""
        return nn.Linear(latent_dim, 2 * self.action_dim)

    def proba_distribution(self, output: th.Tensor) -> BetaDistribution:
        """Set the parameters from x."""
        self._excess = softplus(output)  # alpha - 1 and beta - 1, which may be too small to show in alpha and beta
        alpha, beta = self.concentrations
        self.distribution = th.distributions.Beta(alpha, beta)  # which refuses NaN, of which gamma draws would make numbers
        return self

    @property
    def concentrations(self) -> Outputs:
        """Alpha and beta, each of shape ``(n_states, n_actions)``."""
        alpha, beta = (1.0 + self._excess).chunk(2, dim=1)
        return alpha, beta

    def log_prob(self, actions: th.Tensor) -> th.Tensor:
        """
        Sum ``(alpha - 1) log(u) + (beta - 1) log(1 - u) - log B(alpha, beta) - log(high - low)`` over the dimensions.

        In place of an action on or beyond a bound, the nearest one inside counts.
        """
        low, high, lowest, highest = self._bounds_at(actions)
        alpha, beta = _in_double(self.concentrations)
        inside = actions.double().clamp(lowest, highest)
        log_u, log_rest = ((inside - low) / (high - low)).log(), ((high - inside) / (high - low)).log()
        log_density = (alpha - 1.0) * log_u + (beta - 1.0) * log_rest - log_beta_function(alpha, beta)
        return (log_density - (high - low).log()).sum(1).to(self._excess.dtype)

    def entropy(self) -> th.Tensor:
        """Sum ``log B - (alpha - 1) E[log u] - (beta - 1) E[log(1 - u)] + log(high - low)`` over the dimensions."""
        low, high, *_ = self._bounds_at(self._excess)
        alpha, beta = _in_double(self.concentrations)
        of_alpha, of_beta = mean_logs(alpha, beta)
        of_shares = log_beta_function(alpha, beta) - (alpha - 1.0) * of_alpha - (beta - 1.0) * of_beta
        return (of_shares + (high - low).log()).sum(1).to(self._excess.dtype)

    def sample(self) -> th.Tensor:
        """Draw actions, strictly between the bounds."""
        return self.actions_of(standard_gamma(1.0 + self._excess))

    def actions_of(self, gammas: th.Tensor) -> th.Tensor:
        """
        Make actions of gamma-distributed numbers: ``u = g / (g + h)`` with g of shape alpha and h of shape beta.

        :param gammas: shape ``(n_states, 2 n_actions)``: first g, then h
        :return: shape ``(n_states, n_actions)``
        """
        low, high, lowest, highest = self._bounds_at(gammas)
        g, h = _in_double(gammas.chunk(2, dim=1))
        return (low + (high - low) * (g / (g + h))).clamp(lowest, highest).to(gammas.dtype)

    def mode(self) -> th.Tensor:
        """Return the most likely actions, at ``u = (alpha - 1) / (alpha + beta - 2)``."""
        return self.actions_of(self._excess + th.finfo(self._excess.dtype).tiny)  # the middle if both are 0

    def mean(self) -> th.Tensor:
        """Return the mean actions, at ``u = alpha / (alpha + beta)``."""
        return self.actions_of(1.0 + self._excess)

    def get_actions(self, deterministic: bool = False) -> th.Tensor:
        """
        Draw actions, or return the mean ones.

        The mode, which SB3's distributions return, jumps from bound to bound where the density is nearly flat. Where it is
        not, the two are close.
        """
        return self.mean() if deterministic else self.sample()

    def std(self) -> th.Tensor:
        """Return the standard deviations of the actions, in their own unit."""
        low, high, *_ = self._bounds_at(self._excess)
        return (high - low) * self.distribution.stddev

    def actions_from_params(self, output: th.Tensor, deterministic: bool = False) -> th.Tensor:
        """Set the parameters from x, and return actions."""
        return self.proba_distribution(output).get_actions(deterministic)

    def log_prob_from_params(self, output: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """Set the parameters from x, and draw actions; return their log-probabilities, too."""
        actions = self.actions_from_params(output)
        return actions, self.log_prob(actions)

    def _bounds_at(self, like: th.Tensor) -> list[th.Tensor]:
        """Return the bounds on the device of a tensor."""
        return [th.from_numpy(bound).to(like.device) for bound in self.bounds]


def bounded_box(action_space: spaces.Space[Any]) -> spaces.Box:
    """
    Check that a Beta distribution fits the action space.

    :param action_space: the action space
    :return: the same
    :raises ValueError: if it is no Box, or has no bounds, or rounds actions
    """
    given = f'action_distribution is "beta", but the action space is {action_space}'
    otherwise = "or leave action_distribution out for Stable-Baselines3's choice."
    if not isinstance(action_space, spaces.Box):
        raise ValueError(f"{given}, and a Beta distribution is for a Box with bounds: use such a space, {otherwise}")
    if action_space.dtype not in (np.float32, np.float64):
        raise ValueError(
            f"{given}, which rounds actions to {action_space.dtype}: make it a Box of float32 in a wrapper, such as "
            f"gymnasium.wrappers.TransformAction, {otherwise}"
        )
    with np.errstate(over="ignore"):
        is_bounded = np.isfinite(action_space.high - action_space.low).all()
    if not is_bounded:
        raise ValueError(
            f"{given}, which lacks bounds: set them in a wrapper, such as gymnasium.wrappers.TransformAction, {otherwise}"
        )
    return action_space


class Beta(DistributionKind):
    """Independent Beta-distributed actions, ``z = (alpha, beta)``, each of shape ``(n_states, n_actions)``."""

    distributions = (BetaDistribution,)

    def parameters(self, distribution: Distribution) -> Outputs:
        """Read alpha and beta."""
        assert isinstance(distribution, BetaDistribution)
        return distribution.concentrations

    def kl(self, old: Outputs, new: Outputs) -> th.Tensor:
        """
        Sum ``log B(new) - log B(old) - grad log B(old) . (new - old)``, the Bregman divergence of ``log B``.

        The Beta distributions are an exponential family with natural parameters alpha and beta. Scaling by the bounds does
        not change a divergence. In float64 the terms cancel down to 1e-12 at alpha = 1000, and the divergence is not below 0.
        """
        (alpha, beta), (new_alpha, new_beta) = _in_double(old), _in_double(new)
        of_alpha, of_beta = mean_logs(alpha, beta)
        rise = log_beta_function(new_alpha, new_beta) - log_beta_function(alpha, beta)
        above_tangent = rise - of_alpha * (new_alpha - alpha) - of_beta * (new_beta - beta)
        return above_tangent.clamp(min=0.0).sum(1).to(new[0].dtype)

    def fisher_metric(self, z: Outputs) -> Metric:
        """
        Multiply by the Hessian of ``log B``.

        It is ``[[psi_1(alpha) - psi_1(alpha + beta), -psi_1(alpha + beta)], [..., psi_1(beta) - psi_1(alpha + beta)]]``.
        """
        alpha, beta = _in_double(z)
        of_sum = th.polygamma(1, alpha + beta)
        blocks = th.polygamma(1, alpha) - of_sum, of_sum, th.polygamma(1, beta) - of_sum
        of_alpha, across, of_beta = (block.to(z[0].dtype) for block in blocks)
        return lambda dz: (of_alpha * dz[0] - across * dz[1], of_beta * dz[1] - across * dz[0])

    def head(self, policy: ActorCriticPolicy) -> Head | None:
        """Describe our distribution, but not subclasses, which may compute anything."""
        return BetaHead(policy.action_dist) if type(policy.action_dist) is BetaDistribution else None

    def spread(self, distribution: Distribution) -> th.Tensor:
        """Return the standard deviations of the actions."""
        assert isinstance(distribution, BetaDistribution)
        return distribution.std()


@dataclass(frozen=True)
class BetaHead(Head):
    """
    Alpha and beta are ``1 + softplus(x)``.

    :param action_dist: the policy's distribution object
    """

    action_dist: BetaDistribution

    def distribution(self, output: th.Tensor) -> Distribution:
        """Build the distribution."""
        return self.action_dist.proba_distribution(output)

    def linearize(self, output: th.Tensor) -> HeadLinearization:
        """Differentiate: ``d alpha = sigmoid(x) dx``."""
        slope = output.sigmoid()

        def jvp(d_output: th.Tensor, d_parameters: Sequence[th.Tensor]) -> Outputs:
            return tuple((slope * d_output).chunk(2, dim=1))

        def vjp(u: Outputs) -> tuple[th.Tensor, list[th.Tensor]]:
            return slope * th.cat(u, dim=1), []

        return HeadLinearization(jvp, vjp)

    def sampler(self, output: th.Tensor) -> BetaSampler:
        """Build a sampler."""
        return BetaSampler(self.action_dist, output)


class BetaSampler:
    """
    Samples as :class:`BetaDistribution` does, without building one, and with NumPy's arithmetic, which rounds the same.

    :param action_dist: the distribution, for its bounds
    :param output: buffer of x, shape ``(n_envs, 2 n_actions)``
    """

    def __init__(self, action_dist: BetaDistribution, output: th.Tensor) -> None:
        self._low, high, self._lowest, self._highest = action_dist.bounds
        self._range = high - self._low
        self._output = output

    def draw(self) -> None:
        """Draw gamma-distributed numbers. They are NaN if x has overflowed."""
        self._gammas = standard_gamma(1.0 + softplus(self._output))

    def actions(self) -> np.ndarray:
        """Make actions of the numbers."""
        n_actions, gammas = len(self._low), self._gammas.double().numpy()
        g, h = gammas[:, :n_actions], gammas[:, n_actions:]
        actions = self._low + self._range * (g / (g + h))
        if math.isnan(np.vdot(actions, actions)):
            raise ValueError(NAN_ADVICE)
        inside: np.ndarray = np.minimum(np.maximum(actions, self._lowest), self._highest)
        return inside.astype(self._gammas.numpy().dtype)


def _in_double(tensors: Sequence[th.Tensor]) -> Outputs:
    return tuple(tensor.double() for tensor in tensors)
