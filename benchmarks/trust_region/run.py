"""
Measured joint KL(old || new) against ``target_kl`` over 50 updates, ours and sb3-contrib's.

The KL is recomputed by torch.distributions from the parameters before and after each policy step, and summed over action
dimensions: neither implementation's own number is used.

    python -m benchmarks.trust_region.run
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable

import gymnasium as gym
import numpy as np
import sb3_contrib
import torch as th
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.policies import ActorCriticPolicy
from torch.distributions import kl_divergence

import sb3_trpo
from benchmarks.common.environment import RESULTS, environment

N_UPDATES = 50
TARGET_KL = 0.01
SPACES = {
    "Box(1)": spaces.Box(-1.0, 1.0, (1,)),
    "Box(17)": spaces.Box(-1.0, 1.0, (17,)),
    "MultiDiscrete([3, 4, 5, 6])": spaces.MultiDiscrete([3, 4, 5, 6]),
    "MultiBinary(10)": spaces.MultiBinary(10),
}
CLASSES = {"sb3_trpo": sb3_trpo.TRPO, "sb3_contrib": sb3_contrib.TRPO}


class FollowTarget(gym.Env):
    """Rewards actions near a fixed linear function of a random observation."""

    def __init__(self, action_space: spaces.Space) -> None:
        self.observation_space = spaces.Box(-1.0, 1.0, (8,))
        self.action_space = action_space
        size = int(np.prod(action_space.shape))
        self.weights = np.random.default_rng(0).normal(size=(8, size)) / np.sqrt(8)
        self.observation = np.zeros(8, np.float32)
        self.steps = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self._observe(), {}

    def step(self, action):
        reward = -float(np.square(np.ravel(action) - self.observation @ self.weights).mean())
        self.steps += 1
        return self._observe(), reward, False, self.steps >= 100, {}

    def _observe(self) -> np.ndarray:
        self.observation = self.np_random.uniform(-1.0, 1.0, 8).astype(np.float32)
        return self.observation


@th.no_grad()
def joint_kl(old: ActorCriticPolicy, new: ActorCriticPolicy, observations: th.Tensor) -> float:
    """
    Compute the mean KL(old || new) of the joint action.

    :param old: policy before the step
    :param new: policy after it
    :param observations: those of the rollout
    :return: the KL in nats
    """

    def components(policy: ActorCriticPolicy) -> list[th.distributions.Distribution]:
        distribution = policy.get_distribution(observations).distribution
        return list(distribution) if isinstance(distribution, list) else [distribution]

    pairs = zip(components(old), components(new), strict=True)
    return float(sum(kl_divergence(p, q).reshape(len(observations), -1).sum(1) for p, q in pairs).mean())


def measure(make: Callable[..., BaseAlgorithm], action_space: spaces.Space) -> dict[str, float | int | list[float]]:
    """
    Train for 50 updates and measure each.

    :param make: class of the algorithm
    :param action_space: action space of the environment
    :return: largest and mean KL over the updates, the number of updates that changed the policy, and the KL of each
    """
    model = make("MlpPolicy", FollowTarget(action_space), n_steps=512, target_kl=TARGET_KL, seed=0, device="cpu")
    model.set_logger(Logger(folder=None, output_formats=[]))
    train, kls = model.train, []

    def measured_train() -> None:
        old = copy.deepcopy(model.policy.state_dict())
        observations = th.as_tensor(model.rollout_buffer.observations.reshape(-1, 8))
        train()
        before = copy.deepcopy(model.policy)
        before.load_state_dict(old)
        kls.append(joint_kl(before, model.policy, observations))

    model.train = measured_train
    model.learn(N_UPDATES * 512)
    kept = [round(kl, 6) for kl in kls]
    return {"max": max(kls), "mean": float(np.mean(kls)), "moved": sum(kl > 0 for kl in kls), "kls": kept}


def main() -> None:
    """Print a table and write the results."""
    th.set_num_threads(1)
    results = []
    print(f"target_kl = {TARGET_KL}, {N_UPDATES} updates\n")
    print("| actions | TRPO | max joint KL | mean joint KL | accepted steps |\n|---|---|---|---|---|")
    for name, action_space in SPACES.items():
        for package, make in CLASSES.items():
            result = measure(make, action_space)
            results.append({"actions": name, "package": package, "target_kl": TARGET_KL, **result})
            print(f"| {name} | {package} | {result['max']:.5f} | {result['mean']:.5f} | {result['moved']} |", flush=True)
    RESULTS.mkdir(exist_ok=True)
    rows = ",\n".join(json.dumps(result) for result in results)  # a line for each run
    head = json.dumps({"environment": environment()}, indent=1)
    (RESULTS / "trust_region.json").write_text(f'{head[:-2]},\n "results": [\n{rows}\n]}}\n')


if __name__ == "__main__":
    main()
