"""Value regression: minibatch steps of the policy's optimizer fit the critic to the lambda-returns."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import nn
from torch.nn.utils import clip_grad_norm_

from sb3_trpo.numerics.flat import assign
from sb3_trpo.parallel.communicator import ALONE, Communicator
from sb3_trpo.parallel.sharding import MinibatchShard, mean_gradients, weighted_minibatches
from sb3_trpo.rollouts.reader import Minibatch

FitSettings = tuple[int, int, float | None]
"""Epochs, transitions per minibatch of all ranks together, and the bound on the norm of the gradient."""


class FitOutcome(Enum):
    """How a critic fit ended."""

    FITTED = "fitted"
    DIVERGED = "diverged"


@dataclass(frozen=True)
class CriticFit:
    """
    The record of one critic fit.

    :param outcome: how the fit ended
    :param loss: squared error, averaged over each minibatch and then over minibatches; ``None`` if there were none
    :param is_fast: whether the critic was differentiated layer by layer
    """

    outcome: FitOutcome
    loss: float | None
    is_fast: bool = False


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

    After an exception or a non-finite result, parameters and optimizer are as they were before, bit for bit.

    :param policy: the policy that holds the critic; its ``optimizer`` takes the steps
    :param parameters: parameters that the critic may move
    :param minibatches: yields the minibatches of one epoch over the rollout
    :param n_epochs: number of epochs
    :param max_grad_norm: bound on the norm of the gradient, ``None`` or 0 for no bound
    :param communicator: connects the ranks, which have different minibatches and take the same steps
    :param shard: this rank's part of the minibatches, ``None`` for all of them
    :return: the record of the fit
    """
    old_parameters = [parameter.detach().clone() for parameter in parameters]
    old_optimizer = copy.deepcopy(policy.optimizer.state_dict())

    def restore() -> None:
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
            restore()
    except BaseException:  # interrupts too, wherever they come
        restore()
        raise
    return CriticFit(FitOutcome.FITTED if sound else FitOutcome.DIVERGED, loss)


def is_sound(optimizer: th.optim.Optimizer, parameters: Sequence[nn.Parameter]) -> bool:
    """
    Check that parameters and optimizer state are finite.

    A squared gradient may overflow in Adam's second moment, which would stop all learning, while the parameters stay finite.

    :param optimizer: the optimizer, with the state of all its parameters
    :param parameters: parameters that were fitted
    :return: whether all numbers are finite
    """
    # Other optimizers may keep numbers or None beside their tensors.
    state = [value for values in optimizer.state.values() for value in values.values() if isinstance(value, th.Tensor)]
    return all(bool(tensor.isfinite().all()) for tensor in (*parameters, *state))


def mean_loss(totals: th.Tensor, sizes: Sequence[float], communicator: Communicator) -> float:
    """
    Average the mean squared errors of all minibatches.

    :param totals: sum of squared errors for each minibatch of this rank, shape ``(n_minibatches,)``
    :param sizes: number of transitions in each
    :param communicator: connects the ranks, each of which has a part of every minibatch
    :return: the average
    """
    total, n = communicator.sum(th.stack((totals, totals.new_tensor(sizes))))
    return float((total / n).mean())


class SquaredErrors(NamedTuple):
    """
    Squared differences between values and returns in a minibatch.

    :param total: their sum, a scalar
    :param n: number of transitions, without padding
    """

    total: th.Tensor
    n: float


def squared_errors(minibatch: Minibatch, policy: ActorCriticPolicy) -> SquaredErrors:
    """
    Compare values and returns.

    :param minibatch: parts of the minibatch; their errors are added up
    :param policy: the policy that holds the critic
    :return: the squared errors, with their graph
    """
    totals = [part.total((part.inputs.values(policy).flatten() - part.returns).square()) for part in minibatch]
    return SquaredErrors(th.stack(totals).sum(), sum(part.weight for part in minibatch))


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

    Only the critic's parameters get a gradient. Optimizers skip parameters without one, so neither weight decay nor momentum
    moves the policy away from where the trust-region step left it.

    :param policy: the policy that holds the critic; its ``optimizer`` takes the step
    :param parameters: parameters that the critic may move
    :param minibatch: this rank's part of the minibatch
    :param weight: 1, or 0 for a minibatch that only keeps the ranks in step
    :param max_grad_norm: bound on the norm of the gradient, ``None`` or 0 for no bound
    :param communicator: connects the ranks; the gradient is the mean over the minibatches of all ranks
    :return: the weighted errors before the step, without a graph
    """
    total, n = squared_errors(minibatch, policy)
    total, n = weight * total, weight * n
    if parameters and total.requires_grad:  # a frozen critic still reports its loss
        policy.optimizer.zero_grad()
        gradients = th.autograd.grad(total, parameters, allow_unused=True)
        # .grad stays None where a parameter has no effect on the values, so that the optimizer skips that one as well.
        for parameter, gradient in zip(parameters, mean_gradients(gradients, parameters, n, communicator), strict=True):
            parameter.grad = gradient
        if max_grad_norm:
            clip_grad_norm_(parameters, max_grad_norm)
        policy.optimizer.step()
    return SquaredErrors(total.detach(), n)
