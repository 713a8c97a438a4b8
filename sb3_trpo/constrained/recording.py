"""The costs of a rollout, read from the infos of each step while it is collected, and the episodes that they add up to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from stable_baselines3.common.buffers import RolloutBuffer

from sb3_trpo.rollouts.collection.truncation import TruncatedEpisode, truncated_episodes
from sb3_trpo.rollouts.plain_spaces import PlainSpaces

LONGEST_SHOWN = 80
"""Characters of a wrong cost that an error shows."""


class CostRecorder:
    """
    Keeps the costs of a rollout, and the last observations of episodes that a time limit cut off.

    :param keys: keys of the costs in infos
    :param buffer: the rollout buffer that is being filled; its position says which step this is
    :param plain: converts observations to the plain space
    """

    def __init__(self, keys: Sequence[str], buffer: RolloutBuffer, plain: PlainSpaces) -> None:
        self.keys = keys
        self.costs = np.zeros((len(keys), buffer.buffer_size, buffer.n_envs))
        """Cost of each step, shape ``(n_costs, n_steps, n_envs)``."""
        self.truncated: list[TruncatedEpisode] = []
        """The episodes that a time limit cut off."""
        self._buffer = buffer
        self._plain = plain

    def __call__(self, infos: list[dict[str, Any]], dones: np.ndarray) -> None:
        """
        Read the present step.

        :param infos: its infos, one per environment
        :param dones: whether an episode has ended, shape ``(n_envs,)``
        :raises ValueError: if an info has no number under a key
        """
        step = self._buffer.pos
        for key, rows in zip(self.keys, self.costs, strict=True):
            try:
                found = [info[key] for info in infos]
                if None in found:  # NumPy would read it as NaN
                    raise TypeError
                rows[step] = found
            except (KeyError, TypeError, ValueError, OverflowError):
                raise self._error(key, infos) from None
        if np.count_nonzero(dones):
            self.truncated += truncated_episodes(step, np.flatnonzero(dones), infos, self._plain)

    def _error(self, key: str, infos: list[dict[str, Any]]) -> ValueError:
        """Explain which info lacks a cost."""
        for env_index, info in enumerate(infos):
            where = f"environment {env_index} at step {self._buffer.pos} of the rollout"
            advice = "The environment must report the cost of every step, the last of an episode too. The policy is unchanged."
            if key not in info:
                found = sorted(map(str, info))
                return ValueError(f"cost_limits names {key!r}, but info of {where} has no such key; it has {found}. {advice}")
            if not _is_number(info[key]):
                return ValueError(f"info[{key!r}] of {where} is {shown(info[key])}, but must be a number. {advice}")
        raise AssertionError("one of the infos is at fault")

    def require_finite(self) -> None:
        """
        Raise if a cost is not finite in float32, the precision of the critics.

        :raises ValueError: with the first place
        """
        with np.errstate(over="ignore"):
            places = np.argwhere(~np.isfinite(self.costs.astype(np.float32)))
        if len(places):
            index, step, env_index = places[0]
            found = self.costs[index, step, env_index]
            raise ValueError(
                f"info[{self.keys[index]!r}] of environment {env_index} at step {step} of the rollout is {found}, but costs "
                "must be finite numbers in float32. The update was not started: the policy is unchanged and can be saved."
            )


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError, OverflowError):
        return False
    return np.ndim(value) == 0


def shown(value: Any) -> str:
    """
    Describe what was found instead of a cost.

    :param value: anything, a large array or a number of many digits too
    :return: a short text
    """
    text = repr(value)
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."


class Episodes(NamedTuple):
    """
    Episodes that have ended.

    :param lengths: number of steps of each, shape ``(n,)``
    :param costs: cost of each, shape ``(n, n_costs)``
    """

    lengths: np.ndarray
    costs: np.ndarray


class Underway(NamedTuple):
    """
    The present episode of each environment.

    :param lengths: number of steps so far, shape ``(n_envs,)``
    :param costs: cost so far, shape ``(n_envs, n_costs)``
    """

    lengths: np.ndarray
    costs: np.ndarray


def no_episodes(n_envs: int, n_costs: int) -> Underway:
    """
    Begin new episodes in all environments.

    :param n_envs: number of environments
    :param n_costs: number of costs
    :return: episodes without any step
    """
    return Underway(np.zeros(n_envs, int), np.zeros((n_envs, n_costs)))


def follow(underway: Underway, costs: np.ndarray, dones: np.ndarray) -> tuple[Episodes, Underway]:
    """
    Add the steps of a rollout to the present episodes.

    :param underway: the present episodes at its beginning
    :param costs: cost of each step, shape ``(n_costs, n_steps, n_envs)``
    :param dones: whether an episode ended with each step, shape ``(n_steps, n_envs)``
    :return: the episodes that have ended, in the order in which they did, and the present ones at the end
    """
    lengths, totals = underway.lengths.copy(), underway.costs.copy()
    ended_lengths, ended_costs = list[int](), list[np.ndarray]()
    for at_step, ends in zip(costs.transpose(1, 2, 0), dones, strict=True):
        lengths += 1
        totals += at_step
        for env_index in np.flatnonzero(ends):
            ended_lengths.append(int(lengths[env_index]))
            ended_costs.append(totals[env_index].copy())
        lengths[ends], totals[ends] = 0, 0.0
    episodes = Episodes(np.array(ended_lengths, int), np.array(ended_costs).reshape(-1, totals.shape[1]))
    return episodes, Underway(lengths, totals)
