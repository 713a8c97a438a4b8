"""Value regression: the critic follows the lambda-returns by minibatch steps of the policy's optimizer."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import singledispatch
from typing import Any

import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import nn
from torch.nn.functional import mse_loss
from torch.nn.utils import clip_grad_norm_

from sb3_trpo.inputs import inputs_in, state_values
from sb3_trpo.numerics.flat import assign

Minibatch = Any
"""Samples of a rollout buffer."""


class FitOutcome(Enum):
    """How a critic fit ended; ``advice`` says what to do about it."""

    FITTED = "fitted"
    DIVERGED = "diverged"

    @property
    def advice(self) -> str:
        """One sentence on what to do if this outcome persists."""
        return _ADVICE[self]


_ADVICE = {
    FitOutcome.FITTED: "The critic was fitted; there is nothing to do.",
    FitOutcome.DIVERGED: "The critic became non-finite and was put back; lower learning_rate, set max_grad_norm, or scale the "
    "rewards with VecNormalize.",
}


@dataclass(frozen=True)
class CriticFit:
    """
    The record of one critic fit.

    :param outcome: how it ended
    :param loss: mean squared error over all minibatches, ``None`` if there were none
    """

    outcome: FitOutcome
    loss: float | None


def fit_critic(
    policy: ActorCriticPolicy,
    parameters: Sequence[nn.Parameter],
    minibatches: Callable[[], Iterable[Minibatch]],
    n_epochs: int,
    max_grad_norm: float | None,
) -> CriticFit:
    """
    Regress the values on the returns, in place.

    On an exception or a non-finite result, parameters and optimizer are put back as they were, bit for bit.

    :param policy: its ``optimizer`` takes the steps
    :param parameters: those that the critic may move
    :param minibatches: gives one pass over the rollout
    :param n_epochs: number of passes
    :param max_grad_norm: bound on the gradient's norm, ``None`` or 0 for no bound
    :return: the record of the fit
    """
    old_parameters = [parameter.detach().clone() for parameter in parameters]
    old_optimizer = copy.deepcopy(policy.optimizer.state_dict())

    def put_back() -> None:
        assign(parameters, old_parameters)
        policy.optimizer.load_state_dict(old_optimizer)
        policy.optimizer.zero_grad()

    try:
        losses = [
            descend(policy, parameters, minibatch, max_grad_norm) for _ in range(n_epochs) for minibatch in minibatches()
        ]
        loss = float(th.stack(losses).mean()) if losses else None
        policy.optimizer.zero_grad()
        sound = is_sound(policy.optimizer, parameters)
        if not sound:
            put_back()
    except BaseException:  # an interrupt, too, even one in the midst of the lines above
        put_back()
        raise
    return CriticFit(FitOutcome.FITTED if sound else FitOutcome.DIVERGED, loss)


def is_sound(optimizer: th.optim.Optimizer, parameters: Sequence[nn.Parameter]) -> bool:
    """
    Check parameters and optimizer for finiteness.

    A squared gradient may overflow in Adam's second moment, which stops all learning, while the parameters stay finite.

    :param optimizer: its state counts
    :param parameters: of the critic
    :return: whether all numbers are finite
    """
    state = [value for values in optimizer.state.values() for value in values.values() if isinstance(value, th.Tensor)]
    return all(bool(tensor.isfinite().all()) for tensor in (*parameters, *state))


@singledispatch
def value_loss(minibatch: Minibatch, policy: ActorCriticPolicy) -> th.Tensor:
    """
    Average the squared differences of values and returns.

    :param minibatch: of transitions
    :param policy: whose critic it is
    :return: a scalar with its graph
    """
    return mse_loss(state_values(inputs_in(minibatch), policy).flatten(), minibatch.returns)


def descend(
    policy: ActorCriticPolicy, parameters: Sequence[nn.Parameter], minibatch: Minibatch, max_grad_norm: float | None
) -> th.Tensor:
    """
    Take one optimizer step on one minibatch.

    The gradient is taken in the critic's parameters alone. An optimizer passes over parameters without one, so the policy's
    stay where the trust region left them, weight decay and momentum included.

    :param policy: its ``optimizer`` takes the step
    :param parameters: those that the critic may move
    :param minibatch: inputs and returns
    :param max_grad_norm: bound on the gradient's norm, ``None`` or 0 for no bound
    :return: the loss before the step, a detached scalar
    """
    loss = value_loss(minibatch, policy)
    if parameters and loss.requires_grad:
        policy.optimizer.zero_grad()
        gradients = th.autograd.grad(loss, parameters, allow_unused=True)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        if max_grad_norm:
            clip_grad_norm_(parameters, max_grad_norm)
        policy.optimizer.step()
    return loss.detach()
