"""Generalised advantage estimation (Schulman et al. 2016, arXiv:1506.02438), and the moments that standardise advantages."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch as th
from stable_baselines3.common.buffers import RolloutBuffer

from sb3_trpo.parallel.communicator import ALONE, Communicator

ROUNDINGS = 16
"""Rounding errors that add up in one advantage: a GAE sum reaches about 1 / (1 - gamma * lambda) steps, 17 by default."""


Standardise = Callable[[RolloutBuffer, np.ndarray], tuple[float, float]]
"""Gives shift and scale for the advantages of some transitions of a buffer with (step, env) joined, by their indices."""


def as_they_are(buffer: RolloutBuffer, indices: np.ndarray) -> tuple[float, float]:
    """
    Leave advantages alone.

    :param buffer: a full rollout buffer
    :param indices: of the transitions
    :return: shift 0 and scale 1
    """
    return 0.0, 1.0


def standardisation(buffer: RolloutBuffer, indices: np.ndarray, communicator: Communicator = ALONE) -> tuple[float, float]:
    """
    Find what gives the advantages of some transitions, those of all ranks together, mean 0 and standard deviation 1.

    A spread within the rounding error of the values that the advantages were computed from is noise, which must not be blown
    up to a full step: its scale is 0.

    :param buffer: a full rollout buffer, with (step, env) joined
    :param indices: of the transitions
    :param communicator: which have other transitions each
    :return: shift and scale
    """
    n, mean, squares = pooled(buffer.advantages.reshape(-1)[indices], communicator)
    spread = math.sqrt(squares / (n - 1.0)) if n > 1.0 else 0.0
    largest = float(communicator.gather(th.tensor(np.abs(buffer.returns).max())).max())
    rounding = ROUNDINGS * np.finfo(np.float32).eps * largest
    return mean, 0.0 if spread <= rounding else 1.0 / (spread + 1e-8)


def pooled(values: np.ndarray, communicator: Communicator) -> tuple[float, float, float]:
    """
    Take the moments of what several ranks have.

    :param values: of this rank
    :param communicator: all
    :return: how many, their mean, and the sum of squares about it
    """
    values = values.astype(np.float64)
    own = len(values), values.sum(), np.square(values - values.mean()).sum()
    n, total, squares = communicator.gather(th.tensor(own, dtype=th.float64)).numpy().T
    mean = total.sum() / n.sum()
    return float(n.sum()), float(mean), float((squares + n * np.square(total / n - mean)).sum())


def compute_advantages(buffer: RolloutBuffer, last_values: np.ndarray, last_dones: np.ndarray) -> None:
    """
    Fill in advantages and lambda-returns as the buffer's own method does (GAE, arXiv:1506.02438, eq. 16).

    ``A_t = delta_t + c_t A_{t+1}`` is solved for all t at once, by spans that double: after k passes A_t holds ``2^k`` terms
    and c_t the product of as many.

    :param buffer: with rewards, values and episode starts of all steps
    :param last_values: values after the last step, shape ``(n_envs,)``
    :param last_dones: which episodes ended with it, shape ``(n_envs,)``
    """
    with np.errstate(all="ignore"):  # far decay is 0 by intent, and what is not finite is named by require_finite()
        alive = 1.0 - np.concatenate((buffer.episode_starts[1:], last_dones[None]), dtype=np.float64)
        next_values = np.concatenate((buffer.values[1:], last_values[None]))
        advantages = buffer.rewards + buffer.gamma * alive * next_values - buffer.values
        decay = buffer.gamma * buffer.gae_lambda * alive
        span = 1
        while span < len(advantages):
            advantages[:-span] += decay[:-span] * advantages[span:]
            decay[:-span] *= decay[span:]
            span *= 2
        buffer.advantages = advantages.astype(np.float32)
        buffer.returns = buffer.advantages + buffer.values
