"""
Training and evaluation mode of a policy during an update.

With dropout or batch norm a policy is more than a function of its parameters and inputs, so the trust-region step compares
policies in evaluation mode. Layers that keep statistics of the data in buffers, as batch norm does, see the rollout once per
update, after the policy step and the critic's fit.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import nn

from sb3_trpo.numerics.flat import assign, flatten, unflatten
from sb3_trpo.parallel.communicator import ALONE, Communicator
from sb3_trpo.rollouts.batch import RolloutBatch
from sb3_trpo.rollouts.inputs import PolicyInputs
from sb3_trpo.rollouts.transitions import GRAPH_LIMITS, default_chunk_size


def statistical_layers(policy: ActorCriticPolicy) -> list[nn.Module]:
    """
    Find the layers that a forward pass in training mode changes: batch norm, spectral norm, anything with buffers.

    :param policy: the policy
    :return: modules that hold a buffer themselves, not only in a submodule
    """
    return [module for module in policy.modules() if next(module.buffers(recurse=False), None) is not None]


@contextmanager
def evaluation_mode(policy: ActorCriticPolicy) -> Iterator[None]:
    """
    Make the policy a function of its parameters and inputs inside the block: no dropout, batch norm by running statistics.

    :param policy: the policy; its mode is restored afterwards
    """
    training = policy.training
    try:
        policy.set_training_mode(False)
        yield
    finally:
        policy.set_training_mode(training)


@contextmanager
def critic_mode(policy: ActorCriticPolicy) -> Iterator[None]:
    """
    Switch on training mode inside the block, dropout included, except in layers with statistics: the policy may share them.

    :param policy: the policy; in evaluation mode afterwards
    """
    try:
        policy.set_training_mode(True)
        for layer in statistical_layers(policy):
            layer.training = False  # not layer.eval(): dropout inside it stays on
        yield
    finally:
        policy.set_training_mode(False)


def update_statistics(
    policy: ActorCriticPolicy, batch: RolloutBatch, chunk_size: int | None, communicator: Communicator = ALONE
) -> None:
    """
    Show layers with statistics, if there are any, one chunk of states from all over the rollout.

    :param policy: the policy, in evaluation mode before and after
    :param batch: the rollout
    :param chunk_size: number of states in the chunk, ``None`` to choose by observation size
    :param communicator: connects the ranks, whose statistics are averaged
    """
    if statistical_layers(policy):
        size = chunk_size or default_chunk_size(policy.observation_space, GRAPH_LIMITS)
        follow_statistics(policy, batch.spread_inputs(max(2, size)), communicator)  # a single state has no variance


@th.no_grad()
def follow_statistics(policy: ActorCriticPolicy, inputs: PolicyInputs, communicator: Communicator = ALONE) -> None:
    """
    Show every layer with statistics the data once, by one run of policy and critic without dropout.

    :param policy: the policy, in evaluation mode before and after
    :param inputs: states that the policy acted in; a single one has no variance and is skipped
    :param communicator: connects the ranks, whose statistics are averaged
    """
    if len(inputs) > 1:
        _show(policy, inputs)
    # Ranks that skipped a single state take part all the same: every rank must enter every reduction.
    buffers = [buffer for layer in statistical_layers(policy) for buffer in layer.buffers(recurse=False)]
    floats = [buffer for buffer in buffers if buffer.is_floating_point()]
    if floats:
        assign(floats, unflatten(communicator.mean(flatten(floats), 1.0), floats))


def _show(policy: ActorCriticPolicy, inputs: PolicyInputs) -> None:
    """Run policy and critic with only the layers that have statistics in training mode."""
    with ExitStack() as stack:
        stack.callback(policy.set_training_mode, False)
        for layer in statistical_layers(policy):
            stack.callback(layer.register_forward_hook(_leave_training).remove)
            layer.training = True
        inputs.distribution(policy)
        inputs.values(policy)


def _leave_training(layer: nn.Module, inputs: object, output: object) -> None:
    """Switch a layer back after it has run once: a trunk that policy and critic share runs twice."""
    layer.training = False
