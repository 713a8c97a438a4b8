"""Many environments that are stepped by one NumPy expression, so that nearly all of the time is the algorithm's."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv


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
