"""Rows of a rollout buffer: pairing them with what is written into them, and reading them back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch as th
from stable_baselines3.common.buffers import RolloutBuffer

from sb3_trpo.rollouts.plain_spaces import Observation


def arrays_of(observations: Observation) -> list[np.ndarray]:
    """
    List the arrays of observations.

    :param observations: an array or a dict of arrays
    :return: the arrays
    """
    return [*observations.values()] if isinstance(observations, dict) else [observations]


def array_pairs(observations: Observation, buffer: RolloutBuffer) -> list[tuple[np.ndarray, np.ndarray]]:
    """
    Pair each array of observations with the buffer's array for it.

    :param observations: plain observations, shape ``(n_envs, ...)`` or a dict of such arrays
    :param buffer: a rollout buffer for these observations
    :return: pairs of arrays of shapes ``(n_envs, ...)`` and ``(n_steps, n_envs, ...)``
    """
    rows: Observation = buffer.observations
    if isinstance(observations, dict) and isinstance(rows, dict):
        return [(observations[key], part) for key, part in rows.items()]
    return [(cast("np.ndarray", observations), cast("np.ndarray", rows))]


def restored(row: np.ndarray, like: np.ndarray) -> np.ndarray:
    """
    Copy a row of the buffer, in the shape and type of what was written into it.

    :param row: shape ``(n_envs, ...)``
    :param like: the observations that were written
    :return: a copy like them
    """
    return row.reshape(like.shape).astype(like.dtype)


def merged(rows: np.ndarray) -> np.ndarray:
    """
    Merge the first two dimensions, step and environment.

    :param rows: shape ``(n_steps, n_envs, ...)``
    :return: the same numbers, shape ``(n_steps * n_envs, ...)``
    """
    return rows.reshape(-1, *rows.shape[2:])


def stacked(observations: Sequence[Any], buffer: RolloutBuffer) -> Observation:
    """
    Stack single observations in the shapes that the buffer has for them.

    :param observations: plain observations of single environments
    :param buffer: a rollout buffer for these observations
    :return: the observations along the first dimension
    """
    if isinstance(buffer.observations, dict):
        stacks = {key: np.stack([each[key] for each in observations]) for key in buffer.observations}
        return {key: part.reshape(-1, *buffer.observations[key].shape[2:]) for key, part in stacks.items()}
    return np.stack(observations).reshape(-1, *buffer.observations.shape[2:])


class ChangingArray:
    """An array at each step of a rollout, where it seldom changes: each value is kept once, since those of gSDE are large."""

    def __init__(self) -> None:
        self._values: list[np.ndarray] = []
        self._first_steps: list[int] = []
        self._last = b""

    def note(self, step: int, present: np.ndarray) -> None:
        """
        Keep the value at a step.

        :param step: index of the step, later than all that were noted
        :param present: the array, which others may change in place
        """
        found = present.tobytes()
        if found != self._last:
            self._values.append(present.copy())
            self._first_steps.append(step)
            self._last = found

    def per_state(self, steps: slice, n_envs: int) -> th.Tensor:
        """
        Arrange the values for all states of some steps.

        :param steps: the steps, at least one
        :param n_envs: number of environments
        :return: shape ``(n_steps * n_envs, ...)``, or ``(...)`` if it is the same at all these steps
        """
        indices = np.searchsorted(self._first_steps, np.arange(steps.start, steps.stop), side="right") - 1
        if indices[0] == indices[-1]:
            return th.from_numpy(self._values[indices[0]])
        return th.from_numpy(np.stack(self._values)[indices]).repeat_interleave(n_envs, dim=0)
