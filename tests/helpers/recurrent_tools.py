"""Episodes of random length with random masks, and small models with memory on them."""

from __future__ import annotations

from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from helpers.envs import BOX_ACTION, VECTOR, RandomEnv
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import Logger

from sb3_trpo.recurrent import MaskableRecurrentTRPO, RecurrentTRPO

SMALL = {"n_steps": 12, "batch_size": 8, "n_critic_updates": 1, "seed": 0, "device": "cpu"}
TINY = {"lstm_hidden_size": 3, "net_arch": [4]}
ALGORITHMS = {"RecurrentTRPO": RecurrentTRPO, "MaskableRecurrentTRPO": MaskableRecurrentTRPO}
CRITICS = {
    "own LSTM": {},
    "shared LSTM": {"shared_lstm": True, "enable_critic_lstm": False},
    "no LSTM": {"enable_critic_lstm": False},
}
CHOICES = {
    "Discrete": spaces.Discrete(3),
    "MultiDiscrete": spaces.MultiDiscrete([2, 3]),
    "MultiBinary": spaces.MultiBinary(2),
}
ACTIONS = {"Box": BOX_ACTION, **CHOICES}


def options_of(space: spaces.Space) -> list[int]:
    """Count the options of each choice."""
    if isinstance(space, spaces.Discrete):
        return [int(space.n)]
    return [2] * space.n if isinstance(space, spaces.MultiBinary) else [int(n) for n in space.nvec]


class RestlessEnv(RandomEnv):
    """Ends by chance, now and then at a time limit; each state forbids something, and every step notes what it was."""

    def __init__(
        self,
        observation_space: spaces.Space = VECTOR,
        action_space: spaces.Space | None = None,
        p_end: float = 0.2,
        reward: float | None = None,
        forbids: bool = True,
    ) -> None:
        super().__init__(observation_space, action_space)
        self.p_end, self.reward, self.forbids = p_end, reward, forbids
        self.in_force: list[np.ndarray] = []
        self.n_forbidden = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        gym.Env.reset(self, seed=seed)
        self.draw_masks()
        return super().reset(seed=seed)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.n_steps += 1
        if not isinstance(self.action_space, spaces.Box):
            places = np.cumsum([0, *options_of(self.action_space)[:-1]]) + np.asarray(action).reshape(-1)
            self.n_forbidden += not self.masks[places.astype(int)].all()
            self.in_force = [*self.in_force[-99:], self.masks]
        self.draw_masks()
        end, reward = self.np_random.random(), float(np.mean(action)) + self.np_random.normal()
        terminated, truncated = end < 0.6 * self.p_end, 0.6 * self.p_end <= end < self.p_end
        return self.observation_space.sample(), reward if self.reward is None else self.reward, terminated, truncated, {}

    def draw_masks(self) -> None:
        if not isinstance(self.action_space, spaces.Box):
            rows = [self.np_random.random(n) < (0.6 if self.forbids else 2.0) for n in options_of(self.action_space)]
            for row in rows:
                row[self.np_random.integers(len(row))] = True
            self.masks = np.concatenate(rows)

    def action_masks(self) -> np.ndarray:
        return self.masks


def vec_env(n_envs: int = 2, vec_env_cls: Any = None, vec_env_kwargs: Any = None, **settings: Any) -> Any:
    return make_vec_env(
        partial(RestlessEnv, **settings), n_envs, seed=3, vec_env_cls=vec_env_cls, vec_env_kwargs=vec_env_kwargs
    )


def small_model(algorithm: Any = RecurrentTRPO, env: Any = None, policy: Any = "MlpLstmPolicy", **settings: Any) -> Any:
    """Make a model; ``policy_kwargs`` add to those of a tiny network."""
    kwargs = TINY | settings.pop("policy_kwargs", {})
    return algorithm(policy, env or vec_env(), policy_kwargs=kwargs, **SMALL | settings)


def collected(model: Any, n_rollouts: int = 2) -> Any:
    """Collect, so that episodes go on from one rollout to the next."""
    model.set_logger(Logger(folder=None, output_formats=[]))
    _, callback = model._setup_learn(1, None)
    for _ in range(n_rollouts):
        model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)
    return model
