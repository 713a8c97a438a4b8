"""
The variants beside MaskablePPO and RecurrentPPO: returns over three seeds at the same budget, and the time of an update.

    python -m benchmarks.variants.run                # everything: about an hour on two cores
    python -m benchmarks.variants.run --part TMaze-v0

Ours use the settings in ``zoo_configs``. RecurrentPPO uses RL Zoo's tuned settings (``ppo_lstm.yml``) on the velocity-free
tasks. Elsewhere PPO has our network, number of environments and discounting, a rollout of 128 steps per environment, which is
RecurrentPPO's default, and its own defaults for the rest.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import rl_zoo3
import rl_zoo3.import_envs
import torch as th
import yaml
from rl_zoo3.utils import linear_schedule
from sb3_contrib import MaskablePPO, RecurrentPPO
from sb3_contrib.common.envs import InvalidActionEnvDiscrete, InvalidActionEnvMultiBinary, InvalidActionEnvMultiDiscrete
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecEnv, VecNormalize, sync_envs_normalization
from torch import nn

from benchmarks.common.environment import RESULTS, environment
from benchmarks.common.timing import alternate, ratio, show
from sb3_trpo.maskable import MaskableTRPO
from sb3_trpo.maskable.collecting import SelfMaskingModel
from sb3_trpo.recurrent import MaskableRecurrentTRPO, RecurrentTRPO
from sb3_trpo.zoo.algorithms import config_file

SEEDS = (0, 1, 2)
EPISODES = 50
CLASSES = {cls.__name__: cls for cls in (MaskableTRPO, RecurrentTRPO, MaskableRecurrentTRPO, MaskablePPO, RecurrentPPO)}
PPO_LSTM = Path(rl_zoo3.__file__).parent / "hyperparams" / "ppo_lstm.yml"
IDENTITY = {"n_steps": 512, "gamma": 0.4}
"""For tasks where the next observation does not depend on the action; sb3-contrib's tests use the same discount."""


class Task(NamedTuple):
    """An environment, a number of timesteps, and names of the algorithms to train."""

    env: str | Callable[[], Any]
    n_timesteps: int
    algorithms: tuple[str, ...]


TASKS = {
    "InvalidActionEnvDiscrete": Task(
        lambda: InvalidActionEnvDiscrete(dim=20, n_invalid_actions=10), 4096, ("MaskableTRPO", "MaskablePPO")
    ),
    "InvalidActionEnvMultiDiscrete": Task(
        lambda: InvalidActionEnvMultiDiscrete(dims=[5, 5], n_invalid_actions=3), 4096, ("MaskableTRPO", "MaskablePPO")
    ),
    "InvalidActionEnvMultiBinary": Task(
        lambda: InvalidActionEnvMultiBinary(dims=6, n_invalid_actions=3), 4096, ("MaskableTRPO", "MaskablePPO")
    ),
    "CartPoleNoVel-v1": Task("CartPoleNoVel-v1", 100_000, ("RecurrentTRPO", "RecurrentPPO")),
    "PendulumNoVel-v1": Task("PendulumNoVel-v1", 100_000, ("RecurrentTRPO", "RecurrentPPO")),
    "TMaze-v0": Task("TMaze-v0", 60_000, ("RecurrentTRPO", "RecurrentPPO")),
    "MaskedTMaze-v0": Task("MaskedTMaze-v0", 60_000, ("MaskableRecurrentTRPO", "MaskableTRPO", "MaskablePPO", "RecurrentPPO")),
}


def settings_for(name: str, algorithm: str) -> dict[str, Any]:
    """
    Choose settings.

    :param name: key of ``TASKS``
    :param algorithm: key of ``CLASSES``
    :return: keywords of the class, and RL Zoo's ``policy``, ``n_envs`` and ``normalize``
    """
    if callable(TASKS[name].env):
        return {"policy": "MlpPolicy", "n_envs": 1, **IDENTITY}
    settings = file_settings(name, algorithm)
    for key in ("learning_rate", "clip_range", "target_kl"):
        value = settings.get(key)
        if isinstance(value, str):
            settings[key] = linear_schedule(value.removeprefix("lin_")) if value.startswith("lin_") else float(value)
    if isinstance(settings.get("policy_kwargs"), str):
        settings["policy_kwargs"] = eval(settings["policy_kwargs"], {"nn": nn, "dict": dict})
    return {key: value for key, value in settings.items() if key != "n_timesteps"}


def file_settings(name: str, algorithm: str) -> dict[str, Any]:
    """
    Read settings: ours, RL Zoo's for RecurrentPPO, or those of ours that PPO has too.

    :param name: key of ``TASKS``
    :param algorithm: key of ``CLASSES``
    :return: the settings, in the format of RL Zoo's files
    """
    ours = yaml.safe_load(config_file("trpo_mask_lstm" if "Masked" in name else "trpo_lstm").read_text())[name]
    theirs = yaml.safe_load(PPO_LSTM.read_text())
    without_memory = {"policy": "MlpPolicy", "policy_kwargs": None}
    if algorithm in ("RecurrentTRPO", "MaskableRecurrentTRPO"):
        return ours
    if algorithm == "MaskableTRPO":
        return ours | without_memory
    if algorithm == "RecurrentPPO" and name in theirs:
        return theirs[name]
    common = {key: ours[key] for key in ("n_envs", "gamma", "gae_lambda", "ent_coef", "policy", "policy_kwargs")}
    return common | {"n_steps": 128} | (without_memory if algorithm == "MaskablePPO" else {})


def make_env(name: str, n_envs: int, seed: int, normalize: bool, gamma: float) -> VecEnv:
    """
    Make environments.

    :param name: key of ``TASKS``
    :param n_envs: number of environments
    :param seed: seed of the first
    :param normalize: whether to normalize observations and rewards
    :param gamma: discount factor for normalizing rewards
    :return: the environments
    """
    np.random.seed(seed)  # InvalidActionEnv draws from the global generator
    env = make_vec_env(TASKS[name].env, n_envs, seed=seed)
    return VecNormalize(env, gamma=gamma) if normalize else env


def run(name: str, algorithm: str, seed: int) -> dict[str, Any]:
    """
    Train once and evaluate the final policy.

    :param name: key of ``TASKS``
    :param algorithm: key of ``CLASSES``
    :param seed: seed of the training; the evaluation uses 1000 + seed
    :return: mean and standard deviation over 50 deterministic episodes, steps and seconds
    """
    th.set_num_threads(1)
    settings = settings_for(name, algorithm)
    n_envs, policy, normalize = settings.pop("n_envs"), settings.pop("policy"), settings.pop("normalize", False)
    gamma, n_timesteps = settings["gamma"], TASKS[name].n_timesteps
    env = make_env(name, n_envs, seed, normalize, gamma)
    model = CLASSES[algorithm](policy, env, seed=seed, device="cpu", **settings)
    start = time.perf_counter()
    model.learn(n_timesteps)
    seconds = time.perf_counter() - start
    unseen = make_env(name, 1, 1000 + seed, normalize, gamma)
    if isinstance(unseen, VecNormalize):
        sync_envs_normalization(env, unseen)
        unseen.training = unseen.norm_reward = False
    judged = SelfMaskingModel(model, unseen) if "Maskable" in algorithm else model
    mean, std = evaluate_policy(judged, unseen, n_eval_episodes=EPISODES)  # type: ignore[arg-type]  # SelfMaskingModel acts like a model
    numbers = {"mean": float(mean), "std": float(std), "steps": n_timesteps, "seconds": round(seconds, 1)}
    return {"task": name, "algorithm": algorithm, "seed": seed, **numbers}


def update_times() -> dict[str, Any]:
    """
    Time updates on a rollout of 2,048 steps, ours and PPO's in turn, both with ten passes over minibatches of 128.

    :return: seconds of each, and their ratios, by pair
    """
    th.set_num_threads(1)
    common: dict[str, Any] = {"batch_size": 128, "seed": 0, "device": "cpu"}
    lstm = {"policy_kwargs": {"lstm_hidden_size": 64, "net_arch": {"pi": [64], "vf": [64]}}}
    pairs = {
        "RecurrentTRPO": ("CartPoleNoVel-v1", RecurrentPPO, "MlpLstmPolicy", {"n_steps": 256, **lstm}, 8),
        "MaskableTRPO": ("InvalidActionEnvDiscrete", MaskablePPO, "MlpPolicy", {"n_steps": 2048}, 1),
    }
    report = {}
    for name, (task, peer, policy, settings, n_envs) in pairs.items():
        models = {}
        for cls in (CLASSES[name], peer):
            env = make_env(task, n_envs, 0, False, 0.99)
            models[cls.__name__] = cls(policy, env, **common, **settings).learn(2048)
        times = alternate({key: model.train for key, model in models.items()}, rounds=7)
        ratios = ratio(times[peer.__name__], times[name])
        report[f"{peer.__name__} / {name}, {task}"] = {"ratio": ratios, "seconds": times}
        print(f"{peer.__name__} / {name}: {show(ratios)}", flush=True)
    return report


def main() -> None:
    """Run the chosen parts, print a table and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--part", choices=["updates", *TASKS], nargs="*", default=["updates", *TASKS])
    parser.add_argument("--algorithms", choices=list(CLASSES), nargs="*", default=list(CLASSES))
    args = parser.parse_args()
    parts = args.part
    file = RESULTS / "variants.json"
    report = json.loads(file.read_text()) if file.is_file() else {"returns": {}}
    if "updates" in parts:
        report["updates"] = {"environment": environment(), "pairs": update_times()}
    pairs = [(name, each) for name in parts if name in TASKS for each in TASKS[name].algorithms if each in args.algorithms]
    with ProcessPoolExecutor(max_workers=2) as pool:
        jobs = {(pair, seed): pool.submit(run, *pair, seed) for pair in pairs for seed in SEEDS}
        for pair in pairs:
            results = [jobs[pair, seed].result() for seed in SEEDS]
            report["returns"][" ".join(pair)] = {"environment": environment(), "results": results}
            means, seconds = ([result[key] for result in results] for key in ("mean", "seconds"))
            shown = ", ".join(f"{mean:.1f}" for mean in means)
            print(f"| {pair[0]} | {pair[1]} | {np.mean(means):.1f} | {shown} | {np.mean(seconds):.0f} s |", flush=True)
            file.write_text(json.dumps(report, indent=1) + "\n")
    file.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
