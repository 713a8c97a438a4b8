"""
Value regression for a critic that is a plain stack of layers: without autograd, by Adam steps on one flat vector.

A fit takes thousands of steps on small networks, where calls into torch cost more than the arithmetic. A step here makes a
fraction of the calls that ``critic.py`` makes, with the same results up to rounding.

The fit works on copies of the critic's tensors and of the optimizer's state. They are written back at once after a fit that
went well. Until then nothing has changed, so there is nothing to restore. Symbols of Adam are those of Kingma & Ba 2015,
arXiv:1412.6980, Algorithm 1.

======  ============================================
theta   parameters of the critic, flat
g       gradient of the minibatch's loss
m, v    running means of g and of g^2
t       number of steps taken
======  ============================================
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cache, partial
from typing import NamedTuple, TypeVar

import numpy as np
import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import nn

from sb3_trpo.networks.plain_network import Networks
from sb3_trpo.networks.prepared.array_runner import ArrayRunner, pays_by_arrays
from sb3_trpo.networks.prepared.preallocated import AllocatingRunner, PreallocatedRunner, Runner
from sb3_trpo.networks.reading.upper_critic import are_constant, read_upper_critic
from sb3_trpo.networks.stack import Stack
from sb3_trpo.numerics.flat import unflatten
from sb3_trpo.parallel.communicator import ALONE, Communicator
from sb3_trpo.parallel.sharding import MinibatchShard, shard_minibatches, weighted_minibatches
from sb3_trpo.rollouts.batch import RolloutBatch
from sb3_trpo.rollouts.reader import FeatureEpoch
from sb3_trpo.update.critic import CriticFit, FitOutcome, fit_critic, mean_loss
from sb3_trpo.update.flat_adam import FlatAdam, flat_adam

T = TypeVar("T")


def trainable_part(critic: Stack, parameters: Iterable[nn.Parameter]) -> tuple[Stack, Stack] | None:
    """
    Cut a critic where its trainable layers begin: above a trunk that it shares with the policy, or above frozen layers.

    :param critic: all layers of the critic
    :param parameters: parameters that may be moved; those outside the critic do not matter
    :return: the fixed layers, possibly none, and the layers to fit, at least one; ``None`` if only part of a layer is
        trainable, if a fixed layer lies above a trainable one, or if layers share a tensor
    """
    movable = {id(parameter) for parameter in parameters}
    trained = [{id(layer.weight), id(layer.bias)} - {id(None)} <= movable for layer in critic.layers]
    touched = [bool({id(layer.weight), id(layer.bias)} & movable) for layer in critic.layers]
    if True not in trained or trained != touched:
        return None
    start = trained.index(True)
    upper = Stack(critic.layers[start:])
    if not all(trained[start:]) or len({id(tensor) for tensor in upper.tensors}) != len(upper.tensors):
        return None
    return Stack(critic.layers[:start]), upper


class StackRegression(NamedTuple):
    """
    A critic's fit, ready to run.

    :param critic: the layers to fit
    :param adam: the optimizer of their tensors
    :param epoch: yields features and returns of the minibatches of one epoch
    """

    critic: Stack
    adam: FlatAdam
    epoch: FeatureEpoch


@th.no_grad()
def plain_regression(
    policy: ActorCriticPolicy,
    networks: Networks | None,
    parameters: Sequence[nn.Parameter],
    batch: RolloutBatch,
    batch_size: int,
) -> StackRegression | None:
    """
    Prepare a fit without autograd: of the critic's layers, or of those above features that the fit does not change.

    :param policy: the policy that holds the critic; its ``optimizer`` is continued
    :param networks: the policy's networks, on its own tensors; ``None`` if it is not a plain stack
    :param parameters: parameters that the critic may move
    :param batch: what the critic is fitted to
    :param batch_size: transitions per minibatch
    :return: the fit, or ``None`` if the critic or the optimizer needs the general one
    """
    read = read_upper_critic(policy, parameters) if networks is None else (networks.features, networks.critic)
    parts = None if read is None else trainable_part(read[1], parameters)
    if read is None or parts is None:
        return None
    of_observations, (fixed, critic) = read[0], parts
    adam = flat_adam(policy.optimizer, critic.tensors)
    if adam is None:
        return None
    if networks is None and not are_constant(policy, of_observations, batch.spread_inputs(4).observations):
        return None

    def features(observations: PyTorchObs) -> th.Tensor:
        made = fixed(of_observations(observations))
        return made.flatten(1) if critic.is_dense else made  # fixed convolutions return images

    epoch = batch.feature_epoch(features, networks is None or bool(fixed.layers), batch_size)
    return None if epoch is None else StackRegression(critic, adam, epoch)


def fit_values(
    policy: ActorCriticPolicy,
    networks: Networks | None,
    parameters: Sequence[nn.Parameter],
    batch: RolloutBatch,
    n_epochs: int,
    batch_size: int,
    max_grad_norm: float | None,
    communicator: Communicator = ALONE,
) -> CriticFit:
    """
    Regress the critic's values on the returns: without autograd if critic and optimizer allow it, else by ``fit_critic``.

    :param policy: the policy that holds the critic; its ``optimizer`` takes the steps
    :param networks: the policy's networks, ``None`` if it is not a plain stack
    :param parameters: parameters that the critic may move
    :param batch: what the critic is fitted to
    :param n_epochs: number of epochs over the batch
    :param batch_size: transitions per minibatch, of all ranks together
    :param max_grad_norm: bound on the norm of the gradient, ``None`` or 0 for no bound
    :param communicator: connects the ranks, which have different minibatches and take the same steps
    :return: the record of the fit
    """
    shard = shard_minibatches(batch_size, batch.n_transitions, communicator)
    own_size = batch_size if shard is None else shard.batch_size
    regression = plain_regression(policy, networks, parameters, batch, own_size)
    if regression is not None:
        return fit_stack(regression, n_epochs, max_grad_norm, communicator, shard)
    minibatches = partial(batch.minibatches, own_size)
    return fit_critic(policy, parameters, minibatches, n_epochs, max_grad_norm, communicator, shard)


@th.no_grad()
def fit_stack(
    regression: StackRegression,
    n_epochs: int,
    max_grad_norm: float | None,
    communicator: Communicator = ALONE,
    shard: MinibatchShard | None = None,
) -> CriticFit:
    """
    Regress a critic's values on the returns.

    After an exception or a non-finite result nothing has changed.

    :param regression: the fit
    :param n_epochs: number of epochs
    :param max_grad_norm: bound on the norm of the gradient, ``None`` or 0 for no bound
    :param communicator: connects the ranks, which have different minibatches and take the same steps
    :param shard: this rank's part of the minibatches, ``None`` for all of them
    :return: the record of the fit
    """
    critic, adam, epoch = regression
    # Views into the flat vectors: runners read theta and write g without copying.
    copy, gradient = critic.with_tensors(unflatten(adam.theta, critic.tensors)), unflatten(adam.g, critic.tensors)
    runner = cache(partial(_runner, copy, gradient))  # one for whole minibatches, one for a shorter last one

    def differentiate(minibatch: tuple[th.Tensor, th.Tensor]) -> Errors:
        x, returns = minibatch
        n = x.shape[0]  # len() of a tensor takes longer than some of the arithmetic here
        network = runner(n)
        errors = network(x) - returns
        network.vjp(errors * (2.0 / n))
        return Errors(errors, n)

    return fit_by_adam(adam, epoch, differentiate, n_epochs, max_grad_norm, communicator, shard)


class Errors(NamedTuple):
    """
    Differences between values and returns in a minibatch.

    :param errors: the differences, 0 for padding
    :param n: number of transitions, without padding
    """

    errors: th.Tensor
    n: int


@th.no_grad()
def fit_by_adam(
    adam: FlatAdam,
    epoch: Callable[[], Iterable[T]],
    differentiate: Callable[[T], Errors],
    n_epochs: int,
    max_grad_norm: float | None,
    communicator: Communicator = ALONE,
    shard: MinibatchShard | None = None,
) -> CriticFit:
    """
    Regress values on the returns by steps of Adam on one flat vector.

    After an exception or a non-finite result nothing has changed.

    :param adam: the optimizer of the critic's parameters
    :param epoch: yields the minibatches of one epoch
    :param differentiate: ``minibatch -> errors`` at ``adam.theta``; writes the gradient of the mean of their squares to
        ``adam.g``
    :param n_epochs: number of epochs
    :param max_grad_norm: bound on the norm of the gradient, ``None`` or 0 for no bound
    :param communicator: connects the ranks, which have different minibatches and take the same steps
    :param shard: this rank's part of the minibatches, ``None`` for all of them
    :return: the record of the fit
    """
    errors, weights, sizes = list[th.Tensor](), list[float](), list[float]()
    with np.errstate(all="ignore"):  # whether a fit has diverged shows in its result
        for _ in range(n_epochs):
            for minibatch, weight in weighted_minibatches(epoch(), shard):
                found, n = differentiate(minibatch)
                errors.append(found)
                weights.append(weight)
                sizes.append(weight * n)
                _average(adam.g, sizes[-1], communicator)
                if max_grad_norm:
                    adam.g.mul_((max_grad_norm / (adam.g.norm() + 1e-6)).clamp(max=1.0))  # 1e-6 as in torch's clipping
                adam.step()
    loss = mean_loss(_totals(errors, weights), sizes, communicator) if errors else None  # the last exchange, which may fail
    sound = adam.is_finite()
    if sound and errors:
        adam.commit()
    return CriticFit(FitOutcome.FITTED if sound else FitOutcome.DIVERGED, loss, is_fast=True)


def _runner(critic: Stack, gradient: Sequence[th.Tensor], n_rows: int) -> Runner:
    """Choose what runs the critic on minibatches of one size."""
    if pays_by_arrays(critic, n_rows):
        return ArrayRunner(critic, n_rows, gradient)
    return PreallocatedRunner(critic, n_rows, gradient) if critic.is_dense else AllocatingRunner(critic, gradient)


def _average(g: th.Tensor, n: float, communicator: Communicator) -> None:
    """Average a mean over n transitions of this rank over those of all ranks, whose numbers may differ; in place."""
    if communicator.size > 1:
        g.copy_(communicator.mean(n * g, n))


def _totals(errors: list[th.Tensor], weights: list[float]) -> th.Tensor:
    """Sum the weighted squares of each minibatch's errors, all at once after the fit: cheaper than a call in every step."""
    indices = th.arange(len(errors)).repeat_interleave(th.tensor([len(error) for error in errors]))
    squares = th.cat(errors).flatten().square()
    return squares.new_zeros(len(errors)).index_add_(0, indices.to(squares.device), squares) * squares.new_tensor(weights)
