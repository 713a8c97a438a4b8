"""Full rollout buffers in which every number is another one."""

import numpy as np
import torch as th
from gymnasium import spaces
from helpers.envs import VECTOR
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer

N_ENVS, N_STEPS = 3, 6


def filled(
    observation_space: spaces.Space = VECTOR,
    action_space: spaces.Space | None = None,
    n_steps: int = N_STEPS,
    n_envs: int = N_ENVS,
    seed: int = 0,
    buffer_class: type[RolloutBuffer] | None = None,
) -> RolloutBuffer:
    action_space = action_space or spaces.Discrete(3)
    default = DictRolloutBuffer if isinstance(observation_space, spaces.Dict) else RolloutBuffer
    buffer = (buffer_class or default)(n_steps, observation_space, action_space, device="cpu", n_envs=n_envs)
    rng = np.random.default_rng(seed)

    def some(space):
        if isinstance(space, spaces.Dict):
            return {key: some(part) for key, part in space.items()}
        return np.stack([space.sample() for _ in range(n_envs)])

    for space in (observation_space, action_space):
        space.seed(seed)
    for _ in range(n_steps):
        value, log_prob = (th.as_tensor(rng.standard_normal(n_envs)) for _ in range(2))
        buffer.add(some(observation_space), some(action_space), rng.standard_normal(n_envs), np.zeros(n_envs), value, log_prob)
    buffer.compute_returns_and_advantage(value, np.zeros(n_envs))
    return buffer
