"""Value regression: the critic follows the lambda-returns by minibatch steps of the policy's optimizer."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import singledispatch
from typing import Any, NamedTuple

import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import nn
from torch.nn.utils import clip_grad_norm_

from sb3_trpo.numerics.flat import assign
from sb3_trpo.parallel.communicator import ALONE, Communicator
from sb3_trpo.parallel.sharding import MinibatchShard, mean_gradients, weighted_minibatches
from sb3_trpo.rollouts.inputs import inputs_in, state_values

Minibatch = Any
"""Samples of a rollout buffer."""


class FitOutcome(Enum):
    """How a critic fit ended."""

    FITTED = "fitted"
    DIVERGED = "diverged"


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
    communicator: Communicator = ALONE,
    shard: MinibatchShard | None = None,
) -> CriticFit:
    """
    Regress the values on the returns, in place.

    On an exception or a non-finite result, parameters and optimizer are put back as they were, bit for bit.

    :param policy: its ``optimizer`` takes the steps
    :param parameters: those that the critic may move
    :param minibatches: gives one pass over the rollout
    :param n_epochs: number of passes
    :param max_grad_norm: bound on the gradient's norm, ``None`` or 0 for no bound
    :param communicator: which have minibatches of their own; all take the same steps
    :param shard: this rank's part of the minibatches, ``None`` for all of them
    :return: the record of the fit
    """
    old_parameters = [parameter.detach().clone() for parameter in parameters]
    old_optimizer = copy.deepcopy(policy.optimizer.state_dict())

    def put_back() -> None:
        assign(parameters, old_parameters)
        policy.optimizer.load_state_dict(old_optimizer)
        policy.optimizer.zero_grad()

    try:
        errors = [
            descend(policy, parameters, minibatch, weight, max_grad_norm, communicator)
            for _ in range(n_epochs)
            for minibatch, weight in weighted_minibatches(minibatches(), shard)
        ]
        loss = (
            mean_loss(th.stack([each.total for each in errors]), [each.n for each in errors], communicator) if errors else None
        )
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


def mean_loss(totals: th.Tensor, sizes: Sequence[float], communicator: Communicator) -> float:
    """
    Average over the minibatches their mean squared errors.

    :param totals: squared errors summed over each minibatch of this rank
    :param sizes: how many there were
    :param communicator: whose minibatches are parts of the same ones
    :return: the average
    """
    total, n = communicator.sum(th.stack((totals, totals.new_tensor(sizes))))
    return float((total / n).mean())


class SquaredErrors(NamedTuple):
    """Squared differences of values and returns: their sum, a scalar, and how many there are."""

    total: th.Tensor
    n: float


@singledispatch
def squared_errors(minibatch: Minibatch, policy: ActorCriticPolicy) -> SquaredErrors:
    """
    Compare values and returns.

    :param minibatch: of transitions
    :param policy: whose critic it is
    :return: the squared errors, with their graph
    """
    errors = state_values(inputs_in(minibatch), policy).flatten() - minibatch.returns
    return SquaredErrors(errors.square().sum(), len(errors))


def descend(
    policy: ActorCriticPolicy,
    parameters: Sequence[nn.Parameter],
    minibatch: Minibatch,
    weight: float,
    max_grad_norm: float | None,
    communicator: Communicator,
) -> SquaredErrors:
    """
    Take one optimizer step on one minibatch.

    The gradient is taken in the critic's parameters alone. An optimizer passes over parameters without one, so the policy's
    stay where the trust region left them, weight decay and momentum included.

    :param policy: its ``optimizer`` takes the step
    :param parameters: those that the critic may move
    :param minibatch: inputs and returns
    :param weight: 1, or 0 if the minibatch does not count
    :param max_grad_norm: bound on the gradient's norm, ``None`` or 0 for no bound
    :param communicator: over whose minibatches the gradient is averaged
    :return: the weighted errors before the step, without a graph
    """
    total, n = squared_errors(minibatch, policy)
    total, n = weight * total, weight * n
    if parameters and total.requires_grad:
        policy.optimizer.zero_grad()
        gradients = th.autograd.grad(total, parameters, allow_unused=True)
        for parameter, gradient in zip(parameters, mean_gradients(gradients, parameters, n, communicator), strict=True):
            parameter.grad = gradient
        if max_grad_norm:
            clip_grad_norm_(parameters, max_grad_norm)
        policy.optimizer.step()
    return SquaredErrors(total.detach(), n)
