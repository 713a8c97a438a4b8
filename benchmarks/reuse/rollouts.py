"""Rollouts that are kept for later updates."""

from __future__ import annotations

import copy
from typing import NamedTuple

import numpy as np
import torch as th
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.utils import obs_as_tensor

from benchmarks.reuse.v_trace import Steps
from sb3_trpo.rollouts.batch import RolloutBatch
from sb3_trpo.rollouts.reader import RolloutReader
from sb3_trpo.rollouts.transitions import PASS_LIMITS, default_chunk_size


class KeptRollout(NamedTuple):
    """
    A copy of a rollout.

    :param buffer: full and flat, with arrays of its own; its log-probabilities are those of the policy that acted
    :param last_observations: observations after the last step, as the policy would have seen them, shape ``(n_envs, ...)``
    :param last_ends: whether an episode ended with the last step, shape ``(n_envs,)``
    :param originals: all observations before normalization, shape ``(n_steps + 1, n_envs, ...)``; ``None`` if not known
    """

    buffer: RolloutBuffer
    last_observations: np.ndarray
    last_ends: np.ndarray
    originals: np.ndarray | None


class Evaluation(NamedTuple):
    """
    What the newest policy and the present critic make of a rollout.

    :param log_probs: log pi_k of the actions, shape ``(n_transitions,)``, flat as the buffer is
    :param values: V of the observations, shape ``(n_steps + 1, n_envs)``
    """

    log_probs: np.ndarray
    values: np.ndarray


def copied(buffer: RolloutBuffer) -> RolloutBuffer:
    """
    Copy a buffer.

    :param buffer: any rollout buffer
    :return: one that shares no array with it
    """
    own = copy.copy(buffer)
    vars(own).update({name: value.copy() for name, value in vars(buffer).items() if isinstance(value, np.ndarray)})
    return own


def with_observations(rollout: KeptRollout, observations: np.ndarray) -> KeptRollout:
    """
    Replace what the policy saw.

    :param rollout: the rollout
    :param observations: shape ``(n_steps + 1, n_envs, ...)``
    :return: the same steps with these observations
    """
    view = copy.copy(rollout.buffer)
    view.observations = RolloutBuffer.swap_and_flatten(observations[:-1])
    return rollout._replace(buffer=view, last_observations=observations[-1])


def by_step(flat: np.ndarray, buffer: RolloutBuffer) -> np.ndarray:
    """
    Undo the flattening of numbers.

    :param flat: one number for each transition of a flat buffer
    :param buffer: the buffer
    :return: shape ``(n_steps, n_envs)``
    """
    return flat.reshape(buffer.n_envs, buffer.buffer_size).T


def steps_of(rollout: KeptRollout, values: np.ndarray) -> Steps:
    """
    List the steps of a rollout.

    :param rollout: the rollout
    :param values: V, shape ``(n_steps + 1, n_envs)``
    :return: the steps
    """
    ends = np.concatenate((rollout.buffer.episode_starts[1:], rollout.last_ends[None]))
    return Steps(rollout.buffer.rewards, values, ends)


@th.no_grad()
def evaluate(policy: ActorCriticPolicy, rollout: KeptRollout, reader: type[RolloutReader]) -> Evaluation:
    """
    Evaluate policy and critic at all steps of a rollout.

    :param policy: the policy, in evaluation mode
    :param rollout: the rollout
    :param reader: reads its buffer
    :return: log-probabilities and values
    """
    buffer, log_probs, values = rollout.buffer, list[th.Tensor](), list[th.Tensor]()
    for chunk in RolloutBatch([buffer], reader).chunks(1, default_chunk_size(policy.observation_space, PASS_LIMITS)):
        log_probs.append(chunk.inputs.distribution(policy).log_prob(chunk.actions))
        values.append(chunk.inputs.values(policy).flatten())
    last = policy.predict_values(obs_as_tensor(rollout.last_observations, policy.device)).flatten()
    of_steps = by_step(th.cat(values).cpu().numpy(), buffer)
    return Evaluation(th.cat(log_probs).cpu().numpy(), np.concatenate((of_steps, last.cpu().numpy()[None])))
