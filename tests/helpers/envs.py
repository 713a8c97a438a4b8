"""Small seeded environments for the tests."""

from __future__ import annotations

import copy
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.envs import SimpleMultiObsEnv
from stable_baselines3.common.vec_env import VecEnv

IMAGE = spaces.Box(0, 255, (36, 36, 1), np.uint8)  # NatureCNN takes nothing smaller
VECTOR = spaces.Box(-1.0, 1.0, (3,))
DICT = spaces.Dict({"vector": VECTOR, "image": IMAGE, "choice": spaces.Discrete(3), "bits": spaces.MultiBinary(2)})
BOX_ACTION = spaces.Box(-1.0, 1.0, (2,))


class RandomEnv(gym.Env):
    """Random observations of any space; the reward is the action's mean, so that raising it pays."""

    def __init__(
        self, observation_space: spaces.Space = VECTOR, action_space: spaces.Space | None = None, reward_scale: float = 1.0
    ) -> None:
        self.observation_space = copy.deepcopy(observation_space)
        self.action_space = copy.deepcopy(action_space or spaces.Discrete(3))
        self.reward_scale = reward_scale
        self.n_steps = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        if seed is not None:
            self.observation_space.seed(seed)
        self.n_steps = 0
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.n_steps += 1
        reward = self.reward_scale * float(np.mean(action))
        return self.observation_space.sample(), reward, self.n_steps % 7 == 0, self.n_steps >= 10, {}


class BareVecEnv(VecEnv):
    """Environments that exist only as arrays; a subclass defines ``reset`` and ``step_wait``."""

    def step_async(self, actions: np.ndarray) -> None:
        self.actions = actions

    def close(self) -> None: ...

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        return [None] * self.num_envs

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None: ...

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        return [None] * self.num_envs

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        return [False] * self.num_envs


def image_env(action_space: spaces.Space | None = None) -> RandomEnv:
    return RandomEnv(IMAGE, action_space)


def dict_env(action_space: spaces.Space | None = None) -> RandomEnv:
    return RandomEnv(DICT, action_space)


def grid_world() -> SimpleMultiObsEnv:
    """SB3's grid world of vectors and images, which draws itself from numpy's generator."""
    np.random.seed(0)
    return SimpleMultiObsEnv()
