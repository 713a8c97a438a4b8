"""Generalized advantage estimation (Schulman et al. 2016, arXiv:1506.02438), and the standardization of advantages."""

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
    Moments of values that are spread over several ranks.

    :param n: number of values
    :param mean: their mean
    :param squares: sum of their squared distances from the mean
    """

    n: float
    mean: float
    squares: float


def standardization(advantages: np.ndarray, returns: np.ndarray, communicator: Communicator = ALONE) -> tuple[float, float]:
    """
    Find the shift and scale that give advantages mean 0 and standard deviation 1 over all ranks.

    If the spread is within the rounding error of the values that the advantages were computed from, it is noise and must not
    be scaled up to a full step. The scale is 0 then.

    :param advantages: advantages that this rank's update uses, shape ``(n,)``
    :param returns: all of this rank's returns, shape ``(n_transitions,)``; they show how large the values are
    :param communicator: connects the ranks
    :return: shift b and scale c of ``(A - b) * c``, the same on every rank
    """
    own = *moments(advantages), np.abs(returns).max()
    of_ranks = communicator.gather(th.tensor(own, dtype=th.float64)).numpy()
    n, mean, squares = pooled(of_ranks[:, :3])
    spread = math.sqrt(squares / (n - 1.0)) if n > 1.0 else 0.0  # n - 1 as in torch's std(), which SB3 uses
    largest = float(of_ranks[:, 3].max())
    rounding = ROUNDINGS * np.finfo(np.float32).eps * largest
    return mean, 0.0 if spread <= rounding else 1.0 / (spread + 1e-8)  # 1e-8 as in SB3


def moments(values: np.ndarray) -> tuple[float, float, float]:
    """
    Compute what a rank tells the others about its values.

    :param values: this rank's values, shape ``(n,)``
    :return: their number, their sum, and the sum of their squared distances from their own mean
    """
    # From its own mean, because sums of squares would cancel where the mean is far from 0.
    values = values.astype(np.float64)
    return len(values), values.sum(), np.square(values - values.mean()).sum()


def pooled(of_ranks: np.ndarray) -> PooledMoments:
    """
    Pool the moments of all ranks.

    :param of_ranks: :func:`moments` of each rank, shape ``(size, 3)``
    :return: moments of the values of all ranks together
    """
    n, total, squares = of_ranks.T
    mean = total.sum() / n.sum()
    return PooledMoments(float(n.sum()), float(mean), float((squares + n * np.square(total / n - mean)).sum()))


def compute_advantages(buffer: RolloutBuffer, last_values: np.ndarray, last_dones: np.ndarray) -> None:
    """
    Fill in advantages and lambda-returns, as the buffer's own method does (GAE, arXiv:1506.02438, eq. 16).

    The recurrence ``A_t = delta_t + c_t A_{t+1}`` is solved for all t at once, by doubling: after k rounds A_t is the sum of
    ``2^k`` terms, and c_t the product of as many factors. SB3's loop over the steps takes several times as long.

    :param buffer: holds rewards, values and episode starts of all steps, shape ``(n_steps, n_envs)``
    :param last_values: values of the observations after the last step, shape ``(n_envs,)``
    :param last_dones: whether an episode ended with the last step, shape ``(n_envs,)``
    """
    # Products of many factors may underflow to 0, as they should. Whatever is not finite is reported by require_finite().
    # The sums are in float64: their order differs from SB3's, which should not show in the float32 results.
    with np.errstate(all="ignore"):
        alive = 1.0 - np.concatenate((buffer.episode_starts[1:], last_dones[None]), dtype=np.float64)
        next_values = np.concatenate((buffer.values[1:], last_values[None]))
        advantages = buffer.rewards + buffer.gamma * alive * next_values - buffer.values
        decay = buffer.gamma * buffer.gae_lambda * alive
        n_terms = 1
        while n_terms < len(advantages):
            # The last n_terms rows are complete. The others add the sum that follows theirs; NumPy computes the right side
            # before it writes, and the decay changes only afterwards, so every row reads the results of the last round.
            advantages[:-n_terms] += decay[:-n_terms] * advantages[n_terms:]
            decay[:-n_terms] *= decay[n_terms:]
            n_terms *= 2
        buffer.advantages = advantages.astype(np.float32)
        buffer.returns = buffer.advantages + buffer.values
