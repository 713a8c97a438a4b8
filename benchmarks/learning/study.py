"""
Statistics of learning runs (Agarwal et al. 2021, arXiv:2108.13264), tabulated and plotted by ``report.py``.

Intervals are rliable's 95 % percentile intervals of a bootstrap with 2,000 resamples, stratified by task; with few runs they
are too narrow. The interquartile mean (IQM) leaves out a quarter of the runs, rounded down, at each end: it averages six of
ten runs, four of six, three of three.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from rliable import library as rly, metrics

RESAMPLES = 2_000
OURS, PEER, PPO = "sb3_trpo", "sb3-contrib", "PPO"
NAMES = {"trpo": OURS, "ppo": PPO, "a2c": "A2C", "ddpg": "DDPG", "gaussian": "Gaussian", "beta": "Beta"}
NAMES |= {"beta, cg_damping 0.01": "Beta, cg_damping 0.01"}


class Study:
    """
    Results of runs, by task and method.

    :param rows: results from ``results/learning``; failed runs have no ``mean``
    """

    def __init__(self, rows: Iterable[Mapping[str, Any]]) -> None:
        self._rows: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
        for row in rows:
            self._rows.setdefault((row["env"], NAMES.get(row["label"], row["label"])), []).append(row)

    def runs(self, env: str, method: str) -> list[Mapping[str, Any]]:
        """Return the runs that have finished."""
        return [row for row in self._rows.get((env, method), []) if "mean" in row]

    def failures(self, env: str, method: str) -> int:
        """Count the runs that have not finished."""
        return len(self._rows.get((env, method), [])) - len(self.runs(env, method))

    def scores(self, env: str, method: str) -> np.ndarray:
        """Return the final mean return of each run, shape ``(runs,)``."""
        return np.array([row["mean"] for row in self.runs(env, method)])

    def envs(self, *methods: str) -> list[str]:
        """List the tasks on which all these methods have finished runs, in the order of the results."""
        return list(dict.fromkeys(env for env, _ in self._rows if all(self.runs(env, method) for method in methods)))

    def methods(self, env: str) -> list[str]:
        """List the methods tried on a task, even if none of their runs has finished."""
        return [method for tried, method in self._rows if tried == env]


def iqm(scores: np.ndarray) -> np.ndarray:
    """
    Average all runs on all tasks, without the best and the worst quarter, rounded down.

    :param scores: (runs, tasks, points)
    :return: (points,)
    """
    runs = np.sort(scores.reshape(-1, scores.shape[-1]), axis=0)
    cut = len(runs) // 4
    return runs[cut : len(runs) - cut].mean(0)  # scipy's trim_mean takes 50 times as long, and this runs for each resample


def mean(scores: np.ndarray) -> np.ndarray:
    """
    Average all runs on all tasks.

    :param scores: (runs, tasks, points)
    :return: (points,)
    """
    return scores.mean((0, 1))


def intervals(of: Callable[..., np.ndarray], *scores: np.ndarray) -> np.ndarray:
    """
    Estimate statistics and their 95 % intervals.

    :param of: function from arrays like ``scores`` to the statistics
    :param scores: (runs, tasks, ...) for each method that is compared
    :return: (3, statistics): values, lower and upper ends of the intervals
    """
    np.random.seed(0)  # rliable 1.2.0 samples from the global generator, whatever `random_state` it is given
    points, ends = rly.get_interval_estimates({"": scores if len(scores) > 1 else scores[0]}, of, reps=RESAMPLES)
    return np.vstack([points[""], ends[""]])


class Scale(NamedTuple):
    """
    What normalized returns are measured by.

    :param one: method whose mean return on a task counts as 1
    :param zero: return by task that counts as 0; 0 where there is none
    """

    one: str = PEER
    zero: Mapping[str, float] = MappingProxyType({})


def normalized(study: Study, envs: Iterable[str], method: str, scale: Scale) -> np.ndarray:
    """
    Bring returns to the same scale on all tasks.

    :param study: the results
    :param envs: tasks on which the mean that counts as 1 is above what counts as 0
    :param method: the method
    :param scale: what counts as 0 and 1
    :return: (runs, tasks)
    :raises ValueError: if the tasks have different numbers of runs
    """
    ends = {env: (scale.zero.get(env, 0.0), study.scores(env, scale.one).mean()) for env in envs}
    return np.stack([(study.scores(env, method) - zero) / (one - zero) for env, (zero, one) in ends.items()], axis=1)


def aggregates(scores: np.ndarray) -> np.ndarray:
    """
    Compute the statistics that rliable recommends.

    :param scores: (runs, tasks)
    :return: IQM, median, mean
    """
    return np.array([of(scores) for of in (metrics.aggregate_iqm, metrics.aggregate_median, metrics.aggregate_mean)])


def probability_of_improvement(study: Study, env: str, other: str = PEER) -> np.ndarray:
    """
    Estimate how likely a run of ours ends above one of another method (Agarwal et al. 2021, section 4).

    :param study: the results
    :param env: the task
    :param other: the other method
    :return: (3,): the probability and its 95 % interval
    """
    pair = (study.scores(env, method)[:, None] for method in (OURS, other))
    return intervals(lambda ours, peer: np.array([metrics.probability_of_improvement(ours, peer)]), *pair)[:, 0]


def profile(scores: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """
    Estimate the share of runs above each level, over all tasks (Agarwal et al. 2021, section 4.1).

    :param scores: (runs, tasks), normalized
    :param levels: (n,)
    :return: (3, n): the shares and their 95 % intervals
    """
    return intervals(lambda each: (each[..., None] > levels).mean((0, 1)), scores)


def curves(study: Study, env: str, method: str) -> np.ndarray:
    """
    Read learning curves on a common grid.

    :param study: the results
    :param env: the task
    :param method: the method
    :return: (runs, points, 3): timesteps, mean return of the last 100 training episodes, and seconds or NaN; only the points
        that all runs have
    """
    rows = [np.array([(*point, np.nan)[:3] for point in row["curve"]]) for row in study.runs(env, method) if row["curve"]]
    shared = set.intersection(*(set(row[:, 0]) for row in rows)) if rows else set()
    return np.array([row[np.isin(row[:, 0], list(shared))] for row in rows])


def uninterrupted(rows: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """
    Leave out runs without times in their curve.

    :param rows: results
    :return: those of runs that were never interrupted
    """
    return [row for row in rows if row.get("curve") and len(row["curve"][-1]) == 3]


def seconds_to_reach(run: Mapping[str, Any], level: float) -> float | None:
    """
    Find when a run's training return first reached a level.

    :param run: its result
    :param level: a return
    :return: seconds since its start, ``None`` if never
    """
    return next((seconds for _, value, seconds in run["curve"] if value >= level), None)
