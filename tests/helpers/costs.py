"""Environments that report costs, and models for them."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces
from helpers.envs import BOX_ACTION, VECTOR, RandomEnv
from helpers.hybrid import HybridEnv

from sb3_trpo.constrained import ConstrainedTRPO

SMALL = {
    "n_steps": 64,
    "batch_size": 32,
    "n_critic_updates": 2,
    "policy_kwargs": {"net_arch": [8]},
    "seed": 0,
    "device": "cpu",
}


class CostlyEnv(RandomEnv):
    """The reward is the action's mean, ``cost`` the part of it above 0, and ``drift`` its negative."""

    def __init__(
        self,
        observation_space: spaces.Space = VECTOR,
        action_space: spaces.Space = BOX_ACTION,
        reward_scale: float = 1.0,
    ) -> None:
        super().__init__(observation_space, action_space, reward_scale)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = super().step(action)
        mean = float(np.mean(action))
        return observation, reward, terminated, truncated, {**info, "cost": max(0.0, mean), "drift": -mean}


class HybridCostlyEnv(HybridEnv):
    """The same for actions of several parts, whose numbers all count alike."""

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = super().step(action)
        return observation, reward, terminated, truncated, {**info, "cost": max(0.0, reward), "drift": -reward}


def costly_model(env: Any = None, limit: float = 1.0, policy: str | None = None, **settings: Any) -> ConstrainedTRPO:
    env = env or CostlyEnv()
    policy = policy or ("MultiInputPolicy" if isinstance(env.observation_space, spaces.Dict) else "MlpPolicy")
    return ConstrainedTRPO(policy, env, **SMALL | {"cost_limits": {"cost": limit}} | settings)
