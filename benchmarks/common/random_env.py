"""Environments with random observations, for measuring updates when it does not matter what is learned."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces


class RandomEnv(gym.Env[np.ndarray, Any]):
    """Gives random observations and no reward; episodes do not end."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        return self.observation_space.sample(), 0.0, False, False, {}


class Frames(RandomEnv):
    """Frames like Atari's after SB3's wrappers."""

    observation_space = spaces.Box(0, 255, (4, 84, 84), np.uint8)
    action_space = spaces.Discrete(6)


class Vectors(RandomEnv):
    """Spaces like those of HalfCheetah-v5."""

    observation_space = spaces.Box(-np.inf, np.inf, (17,))
    action_space = spaces.Box(-1.0, 1.0, (6,))
