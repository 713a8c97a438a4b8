"""Environments and models to time."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import rl_zoo3
import sb3_contrib
import yaml
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper, VecNormalize

import sb3_trpo

CLASSES: dict[str, type[BaseAlgorithm]] = {"ours": sb3_trpo.TRPO, "sb3-contrib": sb3_contrib.TRPO, "PPO": PPO}
RL_ZOO = Path(rl_zoo3.__file__).parent / "hyperparams" / "trpo.yml"


class BatchedPointMass(VecEnv):
    """Point masses to steer to the origin, all stepped by one NumPy expression; episodes last 200 steps."""

    def __init__(self, n_envs: int) -> None:
        super().__init__(n_envs, spaces.Box(-np.inf, np.inf, (8,), np.float32), spaces.Box(-1.0, 1.0, (4,), np.float32))
        self._rng = np.random.default_rng(0)
        self._age = self._rng.integers(0, 200, n_envs)
        self._state = self._start(n_envs)

    def _start(self, n: int) -> np.ndarray:
        return self._rng.normal(size=(n, 8)).astype(np.float32)

    def reset(self) -> np.ndarray:
        self._state = self._start(self.num_envs)
        return self._state.copy()

    def step_async(self, actions: np.ndarray) -> None:
        self._actions = actions

    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        self._state[:, 4:] += 0.1 * self._actions
        self._state[:, :4] += 0.1 * self._state[:, 4:]
        rewards = -np.square(self._state).sum(axis=1)
        self._age += 1
        dones = self._age >= 200
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        for index in np.flatnonzero(dones):
            infos[index] = {"TimeLimit.truncated": True, "terminal_observation": self._state[index].copy()}
        self._state[dones] = self._start(int(dones.sum()))
        self._age[dones] = 0
        return self._state.copy(), rewards, dones, infos

    def close(self) -> None: ...

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        return [getattr(self, attr_name, None)] * self.num_envs

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None: ...

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        return [None] * self.num_envs

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        return [False] * self.num_envs


class TimedVecEnv(VecEnvWrapper):
    """Adds up the time spent in steps."""

    def __init__(self, venv: VecEnv) -> None:
        super().__init__(venv)
        self.seconds = 0.0

    def reset(self) -> np.ndarray:
        return self.venv.reset()

    def step_async(self, actions: np.ndarray) -> None:
        self._start = time.perf_counter()
        self.venv.step_async(actions)

    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        result = self.venv.step_wait()
        self.seconds += time.perf_counter() - self._start
        return result


def make_env(name: str) -> VecEnv:
    """
    Make the environments of a case.

    :param name: the task, with ``x8`` for eight environments, ``+norm`` or ``+zoo`` for VecNormalize, or ``batched``
    :return: a new VecEnv
    """
    if name.startswith("batched"):
        return BatchedPointMass(1024)
    task, _, variant = name.partition("+")
    env = make_vec_env(task.removesuffix("x8"), n_envs=8 if task.endswith("x8") else 2 if variant == "zoo" else 1, seed=0)
    return VecNormalize(env) if variant else env


def settings_of(name: str, package: str) -> dict[str, Any]:
    """
    Choose hyperparameters, the same for both TRPOs.

    :param name: the case
    :param package: key of ``CLASSES``; sb3-contrib averages the KL over action dimensions, ours sums it
    :return: keywords of the constructor
    """
    shared = {"n_steps": 16} if name.startswith("batched") else {}
    if package == "PPO":
        return shared
    if not name.endswith("+zoo"):
        return shared | {"n_critic_updates": 10}  # sb3-contrib's default, which is not ours
    settings = yaml.safe_load(RL_ZOO.read_text())[name.removesuffix("-v5+zoo") + "-v4"]
    for key in ("policy", "n_timesteps", "n_envs", "normalize"):
        settings.pop(key, None)
    learning_rate, target_kl = float(settings.pop("learning_rate")), settings.pop("target_kl")
    return settings | {"learning_rate": learning_rate, "target_kl": target_kl * (1 if package == "sb3-contrib" else 6)}


def make_model(name: str, package: str, env: VecEnv | None = None, **settings: Any) -> BaseAlgorithm:
    """
    Make a model of a case, with a logger that writes nothing.

    :param name: the case
    :param package: key of ``CLASSES``
    :param env: replaces the case's own environments
    :param settings: further keywords of the constructor
    :return: the model, on the CPU
    """
    policy = settings.pop("policy", "MlpPolicy")
    chosen = settings_of(name, package) | settings
    model = CLASSES[package](policy, env or make_env(name), seed=0, device="cpu", **chosen)
    model.set_logger(Logger(folder=None, output_formats=[]))
    return model
