"""
CartPole-v1 and Pendulum-v1 with RL Zoo's tuned settings, ours and sb3-contrib's, three seeds each.

    python benchmarks/classic_control.py
"""

from __future__ import annotations

import json
import time
from typing import Any

import numpy as np
import sb3_contrib
import torch as th
import yaml
from environment import RESULTS, environment
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

import sb3_trpo
from sb3_trpo.zoo import config_file

ENVS = ("CartPole-v1", "Pendulum-v1")
SEEDS = (0, 1, 2)
CLASSES = {"sb3_trpo": sb3_trpo.TRPO, "sb3_contrib": sb3_contrib.TRPO}


def run(package: str, env_id: str, seed: int) -> dict[str, Any]:
    """
    Train once and evaluate the final policy.

    :param package: whose TRPO
    :param env_id: the task
    :param seed: of the training; the evaluation uses 1000 + seed
    :return: mean and standard deviation over 20 deterministic episodes, steps and seconds
    """
    settings = yaml.safe_load(config_file("trpo").read_text())[env_id]
    n_envs, n_timesteps, policy = settings.pop("n_envs"), settings.pop("n_timesteps"), settings.pop("policy")
    model = CLASSES[package](policy, make_vec_env(env_id, n_envs, seed=seed), seed=seed, device="cpu", **settings)
    start = time.perf_counter()
    model.learn(n_timesteps)
    seconds = time.perf_counter() - start
    mean, std = evaluate_policy(model, make_vec_env(env_id, seed=1000 + seed), n_eval_episodes=20)
    return {
        "env": env_id,
        "package": package,
        "seed": seed,
        "mean": float(mean),
        "std": float(std),
        "steps": n_timesteps,
        "seconds": round(seconds, 1),
    }


def main() -> None:
    """Run everything, print a table and write the results."""
    th.set_num_threads(1)
    results = []
    for env_id in ENVS:
        for seed in SEEDS:
            for package in CLASSES:
                results.append(run(package, env_id, seed))
                print(results[-1], flush=True)
    print("| task | TRPO | mean return over seeds | seeds |\n|---|---|---|---|")
    for env_id in ENVS:
        for package in CLASSES:
            means = [result["mean"] for result in results if (result["env"], result["package"]) == (env_id, package)]
            print(f"| {env_id} | {package} | {np.mean(means):.1f} | {', '.join(f'{mean:.1f}' for mean in means)} |")
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "classic_control.json").write_text(
        json.dumps({"environment": environment(), "results": results}, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
