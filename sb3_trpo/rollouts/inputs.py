"""
What a policy is given to act on, and how it is asked: dispatched on type.

Observations alone go to SB3's own methods. Action masks (``maskable.py``) and sequences (``recurrent.py``) are types of their
own, which register what differs; so whatever handles transitions knows none of them.
"""

from __future__ import annotations

from functools import singledispatch
from typing import Any

import torch as th
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import PyTorchObs

Inputs = Any
"""A tensor, a dict of tensors, or a type registered with the functions here."""


@singledispatch
def action_distribution(inputs: Inputs, policy: ActorCriticPolicy) -> Distribution:
    """
    Ask a policy for its action distribution.

    :param inputs: what it acts on
    :param policy: the policy
    :return: the distribution, one row for each transition, with its graph
    """
    return policy.get_distribution(inputs)


@singledispatch
def state_values(inputs: Inputs, policy: ActorCriticPolicy) -> th.Tensor:
    """
    Ask a critic for its values.

    :param inputs: as for the policy
    :param policy: with the critic
    :return: shape ``(n, 1)``, with their graph
    """
    return policy.predict_values(inputs)


@singledispatch
def observations_in(inputs: Inputs) -> PyTorchObs:
    """
    Give what the first layer sees.

    :param inputs: what the policy acts on
    :return: the observations alone
    """
    observations: PyTorchObs = inputs
    return observations


def number_in(inputs: Inputs) -> int:
    """
    Count the transitions that inputs are for.

    :param inputs: what the policy acts on
    :return: the first dimension of its observations
    """
    observations = observations_in(inputs)
    return len(next(iter(observations.values())) if isinstance(observations, dict) else observations)


@singledispatch
def restrict(inputs: Inputs, distribution: Distribution) -> Distribution:
    """
    Take away the actions that the inputs forbid.

    :param inputs: what the policy acts on
    :param distribution: at their observations, over all actions; may be changed
    :return: the distribution over those allowed
    """
    return distribution


@singledispatch
def inputs_in(samples: Any) -> Inputs:
    """
    Find what the policy acted on.

    :param samples: of a rollout buffer
    :return: its inputs
    """
    return samples.observations


@singledispatch
def some_inputs(policy: ActorCriticPolicy, observations: PyTorchObs) -> Inputs:
    """
    Complete observations to inputs, when there is no rollout to read them from.

    :param policy: the policy
    :param observations: some
    :return: what it may be given with them
    """
    return observations


@singledispatch
def minibatches_of(buffer: RolloutBuffer, batch_size: int) -> Any:
    """
    Pass once over a rollout, for the critic.

    :param buffer: a full rollout buffer
    :param batch_size: transitions at a time
    :return: an iterator over samples, for :func:`inputs_in`; as many as there is room for
    """
    return buffer.get(batch_size)
