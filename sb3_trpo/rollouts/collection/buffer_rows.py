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


def per_state(rows: np.ndarray, n_envs: int) -> th.Tensor:
    """
    Arrange parameters of a distribution that were recorded at each step for all states of these steps.

    :param rows: shape ``(n_steps, ...)``
    :param n_envs: number of environments
    :return: shape ``(n_steps * n_envs, ...)``, or ``(...)`` if no step has changed them: those of gSDE take much memory
    """
    if (rows == rows[0]).all():
        return th.from_numpy(rows[0])
    return th.from_numpy(rows).repeat_interleave(n_envs, dim=0)
