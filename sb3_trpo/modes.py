"""
Training and evaluation mode of a policy during an update.

Dropout and batch norm make a policy more than a function of its parameters. The trust region compares policies in evaluation
mode; batch norm's running statistics follow the data once per update, after it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import nn

from sb3_trpo.rollout import Transitions


def batch_norms(policy: ActorCriticPolicy) -> list[nn.Module]:
    """
    Find the layers that keep running statistics of what passes through them.

    :param policy: the policy
    :return: its batch norms, and instance norms that track
    """
    return [module for module in policy.modules() if getattr(module, "track_running_stats", False)]


@contextmanager
def evaluation_mode(policy: ActorCriticPolicy) -> Iterator[None]:
    """
    Make the policy a well-defined function for a while: no dropout, batch norm by its running statistics.

    :param policy: the policy
    """
    training = policy.training
    policy.set_training_mode(False)
    try:
        yield
    finally:
        policy.set_training_mode(training)


@contextmanager
def critic_mode(policy: ActorCriticPolicy) -> Iterator[None]:
    """
    Switch on training mode for a while, dropout included, but keep the running statistics, which the policy may share.

    :param policy: the policy, left in evaluation mode
    """
    policy.set_training_mode(True)
    for module in batch_norms(policy):
        module.eval()
    try:
        yield
    finally:
        policy.set_training_mode(False)


@th.no_grad()
def follow_statistics(policy: ActorCriticPolicy, transitions: Transitions) -> None:
    """
    Let every batch norm see the data once, by one pass through policy and critic.

    :param policy: in evaluation mode, and left in it
    :param transitions: the data, at least two
    """
    for module in batch_norms(policy):
        module.train()
    try:
        policy.evaluate_actions(transitions.observations, transitions.actions)
    finally:
        policy.set_training_mode(False)
