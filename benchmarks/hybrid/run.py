"""
Hybrid actions on the Platform domain (Masson et al. 2016, arXiv:1509.01644): returns of four ways to train, over three seeds.

    python -m benchmarks.hybrid.run              # about ten minutes of one core, nearly all of it in the environment

The environment is in the package ``hybrid-platform``, which needs ``numba`` without saying so.

An action of ``Platform-v0`` is a choice (run, hop or leap) and three numbers, one for each option; the environment ignores the
other two. The return of an episode is the share of the way that the agent has come, at most 1.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import gym_platform  # noqa: F401  # registers the environment
import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from benchmarks.common.environment import RESULTS, environment
from sb3_trpo import TRPO

N_TIMESTEPS = 20_480
SEEDS = (0, 1, 2)
EPISODES = 100
SETTINGS: dict[str, Any] = {"n_steps": 256, "target_kl": 0.03}
"""Of four environments: many small updates, for a task that is learned in some ten thousand steps."""
PARAMETERS = {0: ["1/0", "1/1", "1/2"]}


class Plain(gym.Wrapper[Any, Any, Any, Any]):
    """The state alone, without the number of simulator steps that the last action took."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self.observation_space = env.observation_space[0]  # type: ignore[index]  # a Tuple

    def reset(self, **keywords: Any) -> tuple[Any, dict[str, Any]]:
        """Reset."""
        (state, _), info = self.env.reset(**keywords)
        return state, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Step."""
        (state, _), *others = self.env.step((int(action[0]), action[1]))
        return (state, *others)  # type: ignore[return-value]  # others has the right length


class Scaled(Plain):
    """Numbers scaled from [-1, 1], as SB3 advises for Gaussian actions."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        choice, self.boxes = env.action_space  # type: ignore[misc]  # a Tuple
        self.action_space = spaces.Tuple((choice, spaces.Tuple([spaces.Box(-1.0, 1.0, (1,)) for _ in self.boxes])))

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Step."""
        pairs = zip(self.boxes, action[1], strict=True)
        return super().step((action[0], tuple(box.low + (each + 1.0) / 2.0 * (box.high - box.low) for box, each in pairs)))


class OneBox(Scaled):
    """The whole action as one Box, as for algorithms without hybrid actions: the largest of three numbers chooses."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self.action_space = spaces.Box(-1.0, 1.0, (6,))

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Step."""
        return super().step((action[:3].argmax(), np.split(action[3:], 3)))


class Way(NamedTuple):
    """
    A way to train.

    :param wrapper: makes the environment fit
    :param policy_kwargs: keywords of the policy
    """

    wrapper: type[Plain]
    policy_kwargs: dict[str, Any]


WAYS = {
    "one Box": Way(OneBox, {}),
    "Tuple": Way(Scaled, {}),
    "Tuple, action_parameters": Way(Scaled, {"action_parameters": PARAMETERS}),
    "Tuple, action_parameters, beta": Way(Plain, {"action_parameters": PARAMETERS, "action_distribution": "beta"}),
}


def make_env(wrapper: type[Plain]) -> gym.Env[Any, Any]:
    """
    Make an environment.

    :param wrapper: what to wrap it in
    :return: the environment
    """
    return wrapper(gym.make("Platform-v0", disable_env_checker=True))  # it warns of the Tuple in every episode


def run(name: str, seed: int) -> dict[str, Any]:
    """
    Train once and evaluate the final policy.

    :param name: key of ``WAYS``
    :param seed: seed of the training; the evaluation uses 1000 + seed
    :return: mean returns of the last 100 training episodes at each update, and of 100 deterministic episodes at the end
    """
    th.set_num_threads(1)
    way = WAYS[name]
    make: Callable[[], Any] = partial(make_env, way.wrapper)
    env = make_vec_env(make, 4, seed=seed)
    model = TRPO("MlpPolicy", env, seed=seed, device="cpu", policy_kwargs=way.policy_kwargs, **SETTINGS)
    curve = []
    while model.num_timesteps < N_TIMESTEPS:
        model.learn(model.n_steps * model.n_envs, reset_num_timesteps=False)
        curve.append(round(float(np.mean([episode["r"] for episode in model.ep_info_buffer or ()])), 4))
    mean, std = evaluate_policy(model, make_vec_env(make, 4, seed=1000 + seed), n_eval_episodes=EPISODES)
    return {"way": name, "seed": seed, "mean": round(float(mean), 4), "std": round(float(std), 4), "curve": curve}


def main() -> None:
    """Run everything, a seed at a time, and write the results after each run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--seeds", type=int, nargs="*", default=[*SEEDS])
    file = RESULTS / "hybrid.json"
    results: list[dict[str, Any]] = []
    for seed in parser.parse_args().seeds:
        for name in WAYS:
            results.append(run(name, seed))
            print(name, seed, results[-1]["curve"][-1], results[-1]["mean"], flush=True)
            contents = {"environment": environment(), "steps_per_update": 4 * SETTINGS["n_steps"], "results": results}
            file.write_text(json.dumps(contents, indent=1) + "\n")


if __name__ == "__main__":
    main()
