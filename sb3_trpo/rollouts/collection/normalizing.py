"""
One step of SB3's ``VecNormalize`` with fewer calls, bit for bit.

For a few environments, ``VecNormalize`` takes as long as the environments: mean and variance of a handful of numbers go
through many functions in Python, and observations are copied in depth before they are normalized. Here the same operations
are applied to the same numbers in the same order.

=========  ========================================================
mean, var  running moments, from ``count`` numbers
delta      difference between the mean of the new numbers and theirs
n          number of environments
=========  ========================================================
"""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecNormalize

from sb3_trpo.networks.originals import are_original
from sb3_trpo.networks.plain_network import is_patched

Stepped = tuple[Any, np.ndarray, np.ndarray, Any]
"""Observations, rewards, dones and infos."""
NORMALIZING_METHODS = frozenset({"step_wait", "normalize_obs", "_normalize_obs", "normalize_reward", "_update_reward"})
"""Methods of ``VecNormalize`` that are replaced here."""


def normalizes_arrays(venv: VecNormalize) -> bool:
    """
    Check that a ``VecNormalize`` is SB3's own, with observations in one array of floats.

    :param venv: the wrapper
    :return: whether :func:`normalize_step` does what it would
    """
    is_sb3s = are_original(VecNormalize, NORMALIZING_METHODS)
    statistics = (venv.ret_rms, venv.obs_rms) if venv.norm_obs else (venv.ret_rms,)
    is_plain = type(venv) is VecNormalize and not is_patched(venv)
    return is_sb3s and is_plain and _has_floats(venv) and all(type(each) is RunningMeanStd for each in statistics)


def _has_floats(venv: VecNormalize) -> bool:
    space = venv.observation_space
    return isinstance(space, spaces.Box) and space.dtype in (np.float32, np.float64)


def normalize_step(venv: VecNormalize, stepped: Stepped) -> Stepped:
    """
    Update the statistics and normalize one step, as ``VecNormalize.step_wait`` does.

    :param venv: the wrapper; :func:`normalizes_arrays` holds
    :param stepped: what the environments below it have returned
    :return: what the wrapper returns
    """
    observations, rewards, dones, infos = stepped
    venv.old_obs, venv.old_reward = observations, rewards
    if venv.training and venv.norm_obs:
        update(venv.obs_rms, observations)  # type: ignore[arg-type]  # not a dict
    seen = _normalized(venv, observations)
    if venv.training:
        venv.returns = venv.returns * venv.gamma + rewards
        update(venv.ret_rms, venv.returns)
    if venv.norm_reward:
        rewards = _clipped(rewards / np.sqrt(venv.ret_rms.var + venv.epsilon), venv.clip_reward)
    for index in np.flatnonzero(dones):
        if "terminal_observation" in infos[index]:
            infos[index]["terminal_observation"] = venv.normalize_obs(infos[index]["terminal_observation"])
    venv.returns[dones] = 0
    return seen, rewards.astype(np.float32), dones, infos


def _normalized(venv: VecNormalize, observations: np.ndarray) -> np.ndarray:
    """Compute ``(x - mean) / sqrt(var + epsilon)`` within the wrapper's bounds, or copy observations that are to stay."""
    if not venv.norm_obs:
        return observations.copy()
    statistics: Any = venv.obs_rms
    scaled: np.ndarray = (observations - statistics.mean) / np.sqrt(statistics.var + venv.epsilon)
    return _clipped(scaled, venv.clip_obs).astype(np.float32)


def _clipped(values: np.ndarray, bound: float) -> np.ndarray:
    """Clip: ``np.clip`` takes several times as long for a few numbers."""
    clipped: np.ndarray = np.minimum(np.maximum(values, -bound), bound)
    return clipped


def update(statistics: RunningMeanStd, values: np.ndarray) -> None:
    """
    Add a batch to running moments, in the order of operations of ``RunningMeanStd.update``.

    The algorithm is that of Chan, Golub & LeVeque 1979 ("Updating Formulae and a Pairwise Algorithm for Computing Sample
    Variances", section 2).

    :param statistics: updated in place
    :param values: shape ``(n, ...)``
    """
    n, count = len(values), statistics.count
    mean = np.add.reduce(values, 0) / n
    centered = values - mean
    var = np.add.reduce(np.multiply(centered, centered, out=centered), 0) / n
    delta, total = mean - statistics.mean, count + n
    new_mean = statistics.mean + delta * n / total
    sums = statistics.var * count + var * n + np.square(delta) * count * n / total
    statistics.mean, statistics.var, statistics.count = new_mean, sums / total, n + count
