"""
Training and evaluation mode of a policy during an update.

Dropout, batch norm and their like make a policy more than a function of its parameters. The trust region compares policies in
evaluation mode. Layers that keep statistics of the data, in buffers, follow it once per update, after the step and the critic.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import nn

from sb3_trpo.numerics.flat import assign
from sb3_trpo.parallel.communicator import ALONE, Communicator
from sb3_trpo.rollouts.inputs import Inputs, action_distribution, number_in, state_values


def statistical_layers(policy: ActorCriticPolicy) -> list[nn.Module]:
    """
    Find the layers whose training mode changes more than their output: batch norm, spectral norm, whatever has buffers.

    :param policy: the policy
    :return: the layers with buffers of their own
    """
    return [module for module in policy.modules() if next(module.buffers(recurse=False), None) is not None]


@contextmanager
def evaluation_mode(policy: ActorCriticPolicy) -> Iterator[None]:
    """
    Make the policy a well-defined function for a while: no dropout, batch norm by its running statistics.

    :param policy: the policy
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
    Switch on training mode for a while, dropout included, but keep all statistics: the policy may share them.

    :param policy: the policy, left in evaluation mode
    """
    try:
        policy.set_training_mode(True)
        for layer in statistical_layers(policy):
            layer.training = False  # of itself: a dropout inside it stays on
        yield
    finally:
        policy.set_training_mode(False)


@th.no_grad()
def follow_statistics(policy: ActorCriticPolicy, inputs: Inputs, communicator: Communicator = ALONE) -> None:
    """
    Let every layer with statistics see the data once, in one pass through policy and critic without dropout.

    :param policy: in evaluation mode, and left in it
    :param inputs: what the policy acted on; a single observation has no variance and is passed over
    :param communicator: which end with the same statistics, the mean of theirs
    """
    if number_in(inputs) > 1:
        _show(policy, inputs)
    buffers = [buffer for layer in statistical_layers(policy) for buffer in layer.buffers(recurse=False)]
    floats = [buffer for buffer in buffers if buffer.is_floating_point()]
    assign(floats, [communicator.sum(buffer) / communicator.size for buffer in floats])


def _show(policy: ActorCriticPolicy, inputs: Inputs) -> None:
    with ExitStack() as stack:
        stack.callback(policy.set_training_mode, False)
        for layer in statistical_layers(policy):
            stack.callback(layer.register_forward_hook(_leave_training).remove)
            layer.training = True
        action_distribution(inputs, policy)
        state_values(inputs, policy)


def _leave_training(layer: nn.Module, inputs: object, output: object) -> None:
    """Let a layer see the data once, though a trunk that policy and critic share is passed twice."""
    layer.training = False
