"""
Velocity tasks: Gymnasium's MuJoCo tasks with a cost of 1 for every step that is faster than a threshold.

Thresholds and speeds are those of Safety-Gymnasium's velocity tasks (Ji et al. 2023, arXiv:2310.12567): half of what an
unconstrained agent reaches, along x, for Ant in the plane. Its tasks are Gymnasium's -v4; these are -v5.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import gymnasium as gym
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

THRESHOLDS = {
    "Ant-v5": 2.6222,
    "HalfCheetah-v5": 3.2096,
    "Hopper-v5": 0.7402,
    "Swimmer-v5": 0.2282,
    "Walker2d-v5": 2.3415,
}
"""Speeds in meters per second, by task."""
LIMIT = 25.0
"""Largest expected cost of an episode; Safety-Gymnasium's."""
IN_THE_PLANE = ("Ant-v5",)
"""Tasks whose speed has two components."""


class SpeedCost(gym.Wrapper[Any, Any, Any, Any]):
    """
    Reports the cost of each step as ``info["cost"]``, and that of the whole episode as ``info["episode_cost"]``.

    :param env: a MuJoCo task
    :param threshold: in meters per second
    :param in_the_plane: whether the speed has two components
    """

    def __init__(self, env: gym.Env[Any, Any], threshold: float, in_the_plane: bool) -> None:
        super().__init__(env)
        self._threshold, self._in_the_plane = threshold, in_the_plane
        self._episode_cost = 0.0

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        """Begin an episode, which has cost nothing yet."""
        self._episode_cost = 0.0
        return self.env.reset(**kwargs)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Add the costs to info."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        speed = math.hypot(info["x_velocity"], info["y_velocity"]) if self._in_the_plane else info["x_velocity"]
        cost = float(speed > self._threshold)
        self._episode_cost += cost
        return observation, reward, terminated, truncated, {**info, "cost": cost, "episode_cost": self._episode_cost}


def make_task(name: str, **kwargs: Any) -> gym.Env[Any, Any]:
    """
    Make one environment.

    :param name: key of ``THRESHOLDS``
    :param kwargs: of ``gymnasium.make``
    :return: the environment
    """
    return SpeedCost(gym.make(name, **kwargs), THRESHOLDS[name], name in IN_THE_PLANE)


def make_envs(name: str, n_envs: int, seed: int, gamma: float) -> VecNormalize:
    """
    Make normalized environments whose Monitor notes the cost of each episode.

    :param name: key of ``THRESHOLDS``
    :param n_envs: number of environments
    :param seed: seed of the first
    :param gamma: discount factor for normalizing rewards
    :return: the environments
    """
    monitor = {"info_keywords": ("episode_cost",)}
    envs: VecEnv = make_vec_env(partial(make_task, name), n_envs, seed=seed, monitor_kwargs=monitor)
    return VecNormalize(envs, gamma=gamma)
