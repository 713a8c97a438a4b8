"""
The running statistics of ``VecNormalize``, which ranks merge as if one of them had seen everything.

Each rank updates its own during a rollout. :func:`added` recovers what it has observed since the ranks last agreed, and
:func:`merge` adds what all have observed to what they agreed on, in the order of the ranks, so that all get the same bits.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from sb3_trpo.parallel.communicator import Communicator
from sb3_trpo.parallel.vec_env_layers import layers_of


class Moments(NamedTuple):
    """Mean, variance and number of some observations."""

    mean: np.ndarray
    var: np.ndarray
    n: float


class StatisticsSync:
    """
    The running statistics of an environment, kept in step with those of the other ranks.

    :param vec_env: environments of this rank
    :param communicator: connects this rank to the others
    """

    def __init__(self, vec_env: VecEnv, communicator: Communicator) -> None:
        self._vec_env = vec_env
        self._communicator = communicator
        self._agreed: list[Moments] = []

    def __len__(self) -> int:
        return len(statistics_of(self._vec_env))

    def take_from_first_rank(self) -> None:
        """Replace the statistics with the first rank's."""
        self.mark_agreed()
        self._agreed = self._communicator.broadcast_object(self._agreed)
        for statistics, moments in zip(statistics_of(self._vec_env), self._agreed, strict=True):
            statistics.mean, statistics.var, statistics.count = moments

    def mark_agreed(self) -> None:
        """Note that all ranks have the present statistics."""
        self._agreed = [moments_of(statistics) for statistics in statistics_of(self._vec_env)]

    def observed(self) -> list[Moments | None]:
        """
        Find what this rank has observed since the ranks last agreed.

        :return: moments for each of the statistics, ``None`` where nothing was observed
        """
        pairs = zip(self._agreed, statistics_of(self._vec_env), strict=True)
        return [added(before, moments_of(statistics)) for before, statistics in pairs]

    def merge(self, observed: list[list[Moments | None]]) -> None:
        """
        Add what all ranks have observed to what they had agreed on.

        :param observed: moments of what each rank has observed, for each of the statistics; ``None`` for nothing
        """
        for index, (statistics, before) in enumerate(zip(statistics_of(self._vec_env), self._agreed, strict=True)):
            merge(statistics, before, [of_rank[index] for of_rank in observed])
        self.mark_agreed()


def statistics_of(vec_env: VecEnv) -> list[RunningMeanStd]:
    """
    Find the running statistics of ``VecNormalize``: of observations, or of each part of Dict observations, and of returns.

    :param vec_env: the outermost wrapper
    :return: the objects themselves, in an order that is the same for environments that are made in the same way
    """
    found: list[RunningMeanStd] = []
    for layer in layers_of(vec_env):
        if isinstance(layer, VecNormalize):
            of_observations = vars(layer).get("obs_rms")  # not getattr(), which would find another layer's
            parts = of_observations.values() if isinstance(of_observations, dict) else filter(None, [of_observations])
            found += [*parts, layer.ret_rms]
    return found


def moments_of(statistics: RunningMeanStd) -> Moments:
    """
    Read running statistics.

    :param statistics: SB3's; it replaces its arrays and never writes into them
    :return: their present values
    """
    return Moments(statistics.mean, statistics.var, statistics.count)


def added(before: Moments, after: Moments) -> Moments | None:
    """
    Find the moments of what was observed between two times: the formula of :func:`merge`, solved for one of its parts.

    :param before: moments of all observations until the earlier time
    :param after: moments of all observations until the later time
    :return: moments of those in between, ``None`` if there are none
    """
    n = after.n - before.n
    if n <= 0:
        return None
    with np.errstate(under="ignore"):  # the square of a small difference may vanish
        mean = (after.mean * after.n - before.mean * before.n) / n
        squares = after.var * after.n - before.var * before.n - np.square(mean - before.mean) * (before.n * n / after.n)
        return Moments(mean, np.maximum(squares / n, 0.0), n)  # rounding may leave it below 0


def merge(statistics: RunningMeanStd, before: Moments, parts: Iterable[Moments | None]) -> None:
    """
    Set running statistics to those of several sets of observations together.

    :param statistics: statistics to overwrite; they stay bit for bit if nothing was observed
    :param before: moments of the observations that all sets have in common
    :param parts: moments of what each has observed since, ``None`` for nothing
    """
    observed = [part for part in parts if part is not None]
    if observed:
        statistics.mean, statistics.var, statistics.count = before
        for part in observed:
            statistics.update_from_moments(*part)
