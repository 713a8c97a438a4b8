"""Generalised advantage estimation (Schulman et al. 2016, arXiv:1506.02438), and the standardisation of advantages."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch as th
from stable_baselines3.common.buffers import RolloutBuffer

from sb3_trpo.parallel.communicator import ALONE, Communicator

ROUNDINGS = 16
"""Rounding errors that add up in one advantage: a GAE sum reaches about 1 / (1 - gamma * lambda) steps, 17 by default."""


class PooledMoments(NamedTuple):
    """
    Moments of numbers that several ranks hold.

    :param n: how many there are
    :param mean: their mean
    :param squares: the sum of their squared distances from the mean
    """

    n: float
    mean: float
    squares: float


def standardisation(advantages: np.ndarray, returns: np.ndarray, communicator: Communicator = ALONE) -> tuple[float, float]:
    """
    Find the shift and scale that give advantages mean 0 and standard deviation 1 over all ranks.

    A spread within the rounding error of the values that the advantages were computed from is noise, which must not be blown
    up to a full step: its scale is 0.

    :param advantages: advantages that this rank's update uses, shape ``(n,)``
    :param returns: all of this rank's returns, which show how large the values are
    :param communicator: connects the ranks, each of which has other advantages
    :return: shift b and scale c of ``(A - b) * c``
    """
    n, mean, squares = pooled_moments(advantages, communicator)
    spread = math.sqrt(squares / (n - 1.0)) if n > 1.0 else 0.0
    largest = float(communicator.gather(th.tensor(np.abs(returns).max())).max())
    rounding = ROUNDINGS * np.finfo(np.float32).eps * largest
    return mean, 0.0 if spread <= rounding else 1.0 / (spread + 1e-8)  # 1e-8 as in SB3


def pooled_moments(values: np.ndarray, communicator: Communicator) -> PooledMoments:
    """
    Compute the moments of numbers that several ranks hold.

    :param values: this rank's numbers, shape ``(n,)``
    :param communicator: connects the ranks
    :return: moments of the numbers of all ranks together
    """
    values = values.astype(np.float64)
    own = len(values), values.sum(), np.square(values - values.mean()).sum()
    n, total, squares = communicator.gather(th.tensor(own, dtype=th.float64)).numpy().T
    mean = total.sum() / n.sum()
    return PooledMoments(float(n.sum()), float(mean), float((squares + n * np.square(total / n - mean)).sum()))


def compute_advantages(buffer: RolloutBuffer, last_values: np.ndarray, last_dones: np.ndarray) -> None:
    """
    Fill in advantages and lambda-returns like the buffer's own method (GAE, arXiv:1506.02438, eq. 16).

    The recurrence ``A_t = delta_t + c_t A_{t+1}`` is solved for all t at once, by doubling: after k rounds A_t holds ``2^k``
    terms, and c_t the product of as many factors. SB3's loop over the steps takes several times as long.

    :param buffer: holds rewards, values and episode starts of all steps
    :param last_values: values of the observations after the last step, shape ``(n_envs,)``
    :param last_dones: whether an episode ended with the last step, shape ``(n_envs,)``
    """
    # Products of many factors may underflow to 0, as they should. Whatever is not finite is reported by require_finite().
    with np.errstate(all="ignore"):
        alive = 1.0 - np.concatenate((buffer.episode_starts[1:], last_dones[None]), dtype=np.float64)
        next_values = np.concatenate((buffer.values[1:], last_values[None]))
        advantages = buffer.rewards + buffer.gamma * alive * next_values - buffer.values
        decay = buffer.gamma * buffer.gae_lambda * alive
        n_terms = 1
        while n_terms < len(advantages):
            advantages[:-n_terms] += decay[:-n_terms] * advantages[n_terms:]
            decay[:-n_terms] *= decay[n_terms:]
            n_terms *= 2
        buffer.advantages = advantages.astype(np.float32)
        buffer.returns = buffer.advantages + buffer.values
