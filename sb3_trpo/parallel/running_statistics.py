"""The layers of vectorised environments, and the running statistics among them, which ranks merge."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from stable_baselines3.common.monitor import ResultsWriter
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecEnvWrapper, VecNormalize


def layers_of(venv: VecEnv) -> Iterator[VecEnv]:
    """
    Go through a vectorised env's wrappers.

    :param venv: the outermost
    :return: each layer, outermost first
    """
    while isinstance(venv, VecEnvWrapper):
        yield venv
        venv = venv.venv
    yield venv


def statistics_of(venv: VecEnv) -> list[RunningMeanStd]:
    """
    Find the running statistics of ``VecNormalize``: of observations, of each part of Dict ones, of returns.

    :param venv: the outermost layer
    :return: the objects themselves, in an order that depends on the env's making alone
    """
    found: list[RunningMeanStd] = []
    for layer in layers_of(venv):
        if isinstance(layer, VecNormalize):
            of_observations = vars(layer).get("obs_rms")  # there is none without norm_obs, or another layer's
            parts = of_observations.values() if isinstance(of_observations, dict) else filter(None, [of_observations])
            found += [*parts, layer.ret_rms]
    return found


def monitor_files(venv: VecEnv) -> dict[str, Any]:
    """
    Find what logs episodes to files: Monitor around envs of this process, and ``VecMonitor``.

    :param venv: the outermost layer
    :return: the wrappers, by the absolute path of their file
    """
    owners: list[Any] = []
    for layer in layers_of(venv):
        owners += [layer]
        for env in layer.envs if isinstance(layer, DummyVecEnv) else ():
            inner: Any = env
            while isinstance(inner, gym.Wrapper):
                owners.append(inner)
                inner = inner.env
    writers = [(owner, vars(owner).get("results_writer")) for owner in owners]
    return {os.path.abspath(writer.file_handler.name): owner for owner, writer in writers if isinstance(writer, ResultsWriter)}


class Moments(NamedTuple):
    """Mean, variance and number of some observations."""

    mean: np.ndarray
    var: np.ndarray
    n: float


def moments_of(statistics: RunningMeanStd) -> Moments:
    """
    Read running statistics.

    :param statistics: whose arrays are never written to, only replaced
    :return: what they are now
    """
    return Moments(statistics.mean, statistics.var, statistics.count)


def added(before: Moments, after: Moments) -> Moments | None:
    """
    Find the moments of what was observed meanwhile: :func:`merge` solved for one of its parts.

    :param before: of all until then
    :param after: of all until now
    :return: of what came in between, ``None`` if nothing did
    """
    n = after.n - before.n
    if n <= 0:
        return None
    with np.errstate(under="ignore"):  # the square of a small difference
        mean = (after.mean * after.n - before.mean * before.n) / n
        squares = after.var * after.n - before.var * before.n - np.square(mean - before.mean) * (before.n * n / after.n)
        return Moments(mean, np.maximum(squares / n, 0.0), n)


def merge(statistics: RunningMeanStd, before: Moments, parts: Iterable[Moments | None]) -> None:
    """
    Set running statistics to those of several sets of observations together.

    :param statistics: what to set
    :param before: of what all have in common
    :param parts: of what each has observed since
    """
    observed = [part for part in parts if part is not None]
    if observed:
        statistics.mean, statistics.var, statistics.count = before
        for part in observed:
            statistics.update_from_moments(*part)
