"""
Value regression for a critic that is a plain stack of layers: no graph, and one Adam step on one flat vector.

The fit works on copies of the critic's tensors and of the optimizer's state. They are written back at once when it has ended
well; until then nothing is changed. Symbols of Adam are those of Kingma & Ba 2015, arXiv:1412.6980, Algorithm 1.

======  ============================================
theta   parameters of the critic, flat
g       gradient of the minibatch's loss
m, v    running means of g and of its square
t       steps taken
======  ============================================
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cache, partial
from typing import NamedTuple

import numpy as np
import torch as th
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import nn

from sb3_trpo.networks.plain_network import Features, Networks, is_patched
from sb3_trpo.networks.preallocated import AllocatingRunner, PreallocatedRunner, Runner
from sb3_trpo.networks.stack import Stack
from sb3_trpo.numerics.flat import unflatten
from sb3_trpo.parallel.communicator import ALONE, Communicator
from sb3_trpo.parallel.sharding import MinibatchShard, weighted_minibatches
from sb3_trpo.rollouts.batch import DIRECT_BUFFERS, PASS_LIMITS, default_chunk_size, minibatches, observation_blocks
from sb3_trpo.update.critic import CriticFit, FitOutcome, mean_loss
from sb3_trpo.update.flat_adam import FlatAdam, flat_adam

Batches = Callable[[], Iterable[tuple[th.Tensor, th.Tensor]]]
"""Gives one pass over the rollout: features of shape ``(n, ...)`` and returns of shape ``(n, 1)`` at a time."""


def trainable_part(critic: Stack, parameters: Iterable[nn.Parameter]) -> tuple[Stack, Stack] | None:
    """
    Cut a critic where its fit begins: a trunk that it shares with the policy stays below.

    :param critic: the whole
    :param parameters: those that may be moved; ones outside the critic do not matter
    :return: the layers below, which may be none, and those to fit, at least one; ``None`` if layers are trained in part
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
    :param adam: made for their tensors
    :param batches: gives one pass over the rollout
    """

    critic: Stack
    adam: FlatAdam
    batches: Batches


@th.no_grad()
def plain_regression(
    policy: ActorCriticPolicy,
    networks: Networks,
    parameters: Sequence[nn.Parameter],
    buffer: RolloutBuffer,
    batch_size: int,
) -> StackRegression | None:
    """
    Prepare a fit without a graph.

    :param policy: its ``optimizer`` is continued
    :param networks: read out of it
    :param parameters: those that the critic may move
    :param buffer: a full rollout buffer, with (step, env) joined
    :param batch_size: transitions per minibatch
    :return: the fit, or ``None`` if optimizer or critic need the general one
    """
    parts = trainable_part(networks.critic, parameters)
    if parts is None:
        return None
    below, critic = parts
    adam = flat_adam(policy.optimizer, critic.tensors)
    if adam is None:
        return None

    def features(observations: PyTorchObs) -> th.Tensor:
        return below(networks.features(observations))

    return StackRegression(critic, adam, _passes_over(buffer, features, bool(below.layers), batch_size))


def _passes_over(buffer: RolloutBuffer, features: Features, always_make: bool, batch_size: int) -> Batches:
    """Read SB3's own buffers directly, and make features once where they take no more room than what is there."""
    if type(buffer) not in DIRECT_BUFFERS or is_patched(buffer):
        return lambda: ((features(batch.observations), batch.returns[:, None]) for batch in buffer.get(batch_size))
    size, rows = default_chunk_size(buffer.observation_space, PASS_LIMITS), buffer.observations
    if always_make or isinstance(rows, dict) or rows.dtype == np.float64:
        return partial(minibatches, buffer, _features_of_all(buffer, features, size), lambda part: part, batch_size, size)
    kept = th.from_numpy(rows)
    return partial(minibatches, buffer, kept, lambda part: features(part.to(buffer.device)), batch_size, size)


def _features_of_all(buffer: RolloutBuffer, features: Features, size: int) -> th.Tensor:
    """Make the features of the whole rollout, some at a time, into one tensor."""
    blocks = map(features, observation_blocks(buffer, size))
    first = next(blocks)
    made = first.new_empty(buffer.buffer_size * buffer.n_envs, *first.shape[1:])
    made[: len(first)] = first
    for index, block in enumerate(blocks, start=1):
        made[index * size : index * size + len(block)] = block
    return made


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

    On an exception or a non-finite result nothing has been changed.

    :param regression: the fit
    :param n_epochs: number of passes
    :param max_grad_norm: bound on the gradient's norm, ``None`` or 0 for no bound
    :param communicator: which have minibatches of their own; all take the same steps
    :param shard: this rank's part of the minibatches, ``None`` for all of them
    :return: the record of the fit
    """
    critic, adam, batches = regression
    copy, gradient = critic.with_tensors(unflatten(adam.theta, critic.tensors)), unflatten(adam.g, critic.tensors)

    @cache
    def runner(n_rows: int) -> Runner:
        return PreallocatedRunner(copy, n_rows, gradient) if copy.is_dense else AllocatingRunner(copy, gradient)

    errors, sizes = list[th.Tensor](), list[float]()
    for _ in range(n_epochs):
        for (x, returns), weight in weighted_minibatches(batches(), shard):
            network = runner(len(x))
            errors.append(weight * (network(x) - returns))
            sizes.append(weight * len(x))
            network.vjp(2.0 * errors[-1])
            adam.g.copy_(communicator.mean(adam.g, sizes[-1]))
            if max_grad_norm:
                adam.g.mul_((max_grad_norm / (adam.g.norm() + 1e-6)).clamp(max=1.0))  # 1e-6 as in torch's clipping
            adam.step()
    sound = adam.is_finite()
    if sound and errors:
        adam.commit()
    loss = mean_loss(_totals(errors), sizes, communicator) if errors else None
    return CriticFit(FitOutcome.FITTED if sound else FitOutcome.DIVERGED, loss)


def _totals(errors: list[th.Tensor]) -> th.Tensor:
    """Sum the squares of each minibatch, all in one go."""
    indices = th.arange(len(errors)).repeat_interleave(th.tensor([len(error) for error in errors]))
    squares = th.cat(errors).flatten().square()
    return squares.new_zeros(len(errors)).index_add_(0, indices.to(squares.device), squares)
