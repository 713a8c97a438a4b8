"""
Velocity tasks with a limit on their cost: ConstrainedTRPO beside TRPO and a Lagrangian.

    python -m benchmarks.constrained.run --jobs 2                    # everything: 75 runs of a million steps, resumable
    python -m benchmarks.constrained.run --task Hopper-v5 --method cpo --seeds 100 --steps 100000 --folder /tmp/try

Each run has one thread and writes its own file as it ends; runs whose file is there are skipped. Settings are those of
``zoo_configs/trpo.yml``.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from concurrent.futures import ProcessPoolExecutor, as_completed
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
import yaml
from rl_zoo3.utils import SimpleLinearSchedule
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize, sync_envs_normalization

from benchmarks.common.environment import RESULTS, environment
from benchmarks.constrained.lagrangian import LagrangianTRPO
from sb3_trpo import TRPO
from sb3_trpo.constrained import ConstrainedTRPO
from sb3_trpo.constrained.velocity_tasks import LIMIT, THRESHOLDS, velocity_task
from sb3_trpo.zoo.algorithms import config_file

METHODS: dict[str, tuple[type[TRPO], dict[str, Any]]] = {
    "cpo": (ConstrainedTRPO, {"cost_limits": {"cost": LIMIT}}),
    "lagrangian": (LagrangianTRPO, {"cost_limits": {"cost": LIMIT}}),
    "trpo": (TRPO, {}),
}
"""Classes and what they need besides the task's settings."""
SEEDS = (0, 1, 2, 3, 4)
"""Other than those of tuning, which begin at 100."""
N_STEPS = 1_000_000
POINTS = 50
EPISODES = 20
FOLDER = RESULTS / "constrained"


def settings_for(task: str) -> dict[str, Any]:
    """
    Read a task's settings.

    :param task: its name
    :return: keywords of the class, with RL Zoo's ``policy`` and ``n_envs``
    """
    settings = yaml.safe_load(config_file("trpo").read_text())[task]
    for key in ("learning_rate", "target_kl"):
        if isinstance(settings[key], str):
            settings[key] = SimpleLinearSchedule(settings[key].removeprefix("lin_"))
    settings["policy_kwargs"] = eval(settings["policy_kwargs"], {"dict": dict})
    return {key: value for key, value in settings.items() if key not in ("n_timesteps", "normalize")}


def make_envs(task: str, n_envs: int, seed: int, gamma: float) -> VecNormalize:
    """
    Make normalized environments whose Monitor notes the cost of each episode.

    :param task: key of ``THRESHOLDS``
    :param n_envs: number of environments
    :param seed: seed of the first
    :param gamma: discount factor for normalizing rewards
    :return: the environments
    """
    monitor = {"info_keywords": ("episode_cost",)}
    return VecNormalize(make_vec_env(velocity_task(task), n_envs, seed=seed, monitor_kwargs=monitor), gamma=gamma)


class Episodes(BaseCallback):
    """Keeps when each episode ended, its return, cost and length."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple[float, ...]] = []

    def _on_step(self) -> bool:
        if np.any(self.locals["dones"]):
            ended = [info["episode"] for info in self.locals["infos"] if "episode" in info]
            self.rows += [(self.num_timesteps, each["r"], each["episode_cost"], each["l"]) for each in ended]
        return True


def curve(rows: list[tuple[float, ...]], n_steps: int) -> list[list[float]]:
    """
    Average the episodes that ended in each part of a run.

    :param rows: of :class:`Episodes`
    :param n_steps: timesteps of the run
    :return: timesteps at the end of each part, mean return, mean cost, mean length and number of episodes; parts in which none
        ended are left out
    """
    table = np.array(rows)
    points = []
    for start, end in pairwise(np.linspace(0, n_steps, POINTS + 1)):
        part = table[(table[:, 0] > start) & (table[:, 0] <= end)]
        if len(part):
            points.append([int(end), *(round(float(each), 2) for each in part[:, 1:].mean(0)), len(part)])
    return points


def evaluate(model: TRPO, env: VecNormalize, task: str, seed: int, deterministic: bool) -> dict[str, list[float]]:
    """
    Evaluate the final policy.

    :param model: the trained model
    :param env: its environments
    :param task: their name
    :param seed: of the evaluation
    :param deterministic: whether to take the most likely actions
    :return: return and cost of each of 20 episodes
    """
    unseen = make_envs(task, 1, seed, model.gamma)
    sync_envs_normalization(env, unseen)
    unseen.training = unseen.norm_reward = False
    th.manual_seed(seed)
    every = model.sde_sample_freq if model.sde_sample_freq > 0 else model.n_steps
    returns, costs, observation, n_steps = [], [], unseen.reset(), 0
    while len(returns) < EPISODES:
        if model.use_sde and n_steps % every == 0:  # as often as in training; predict() alone would keep one noise matrix
            model.policy.reset_noise()
        n_steps += 1
        actions, _ = model.predict(observation, deterministic=deterministic)  # type: ignore[arg-type]  # an array
        observation, _, _, infos = unseen.step(actions)
        if "episode" in infos[0]:
            returns.append(round(float(infos[0]["episode"]["r"]), 2))
            costs.append(float(infos[0]["episode"]["episode_cost"]))
    return {"returns": returns, "costs": costs}


def run(task: str, method: str, seed: int, n_steps: int, changes: dict[str, Any], file: Path) -> str:
    """
    Train once, evaluate the final policy, and write the result.

    :param task: key of ``THRESHOLDS``
    :param method: key of ``METHODS``
    :param seed: seed of the training; the evaluation uses 1000 + seed
    :param n_steps: timesteps
    :param changes: settings that replace the task's
    :param file: where to write
    :return: a line for the terminal
    """
    th.set_num_threads(1)
    warnings.filterwarnings("ignore", message=".*settotalmass.*")
    made_with = environment()
    settings = settings_for(task) | changes
    shown = {name: repr(value) if callable(value) else value for name, value in settings.items()}
    env = make_envs(task, settings.pop("n_envs"), seed, settings["gamma"])
    cls, more = METHODS[method]
    model, episodes = cls(settings.pop("policy"), env, seed=seed, device="cpu", **(more | settings)), Episodes()
    start = time.perf_counter()
    model.learn(n_steps, episodes)
    seconds = time.perf_counter() - start
    last = np.array(episodes.rows[-100:])
    result = {
        "task": task,
        "method": method,
        "seed": seed,
        "steps": n_steps,
        "settings": shown,
        "seconds": round(seconds, 1),
        "environment": made_with,
        "last_100": {"return": float(last[:, 1].mean()), "cost": float(last[:, 2].mean())},
        "sampled": evaluate(model, env, task, 1000 + seed, deterministic=False),
        "deterministic": evaluate(model, env, task, 2000 + seed, deterministic=True),
        "outcomes": model._outcome_counts,
        "curve": curve(episodes.rows, n_steps),
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".tmp")
    partial.write_text(json.dumps(result) + "\n")
    partial.replace(file)
    means = {name: {key: float(np.mean(values)) for key, values in result[name].items()} for name in ("last_100", "sampled")}  # type: ignore[attr-defined]  # both hold dicts
    return f"{task} {method} {seed}: {means}"


def main() -> None:
    """Run what is missing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--task", choices=list(THRESHOLDS), nargs="*", default=list(THRESHOLDS))
    parser.add_argument("--method", choices=list(METHODS), nargs="*", default=list(METHODS))
    parser.add_argument("--seeds", type=int, nargs="*", default=SEEDS)
    parser.add_argument("--steps", type=int, default=N_STEPS)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("--set", type=json.loads, default={}, help="JSON of settings that replace the task's")
    args = parser.parse_args()
    runs = [(task, method, seed) for seed in args.seeds for task in args.task for method in args.method]
    files = {each: args.folder / f"{'-'.join(map(str, each))}.json" for each in runs}
    missing = [each for each in runs if not files[each].is_file()]
    print(f"{len(missing)} of {len(runs)} runs to do", flush=True)
    with ProcessPoolExecutor(args.jobs, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        jobs = {pool.submit(run, *each, args.steps, args.set, files[each]): each for each in missing}
        for job in as_completed(jobs):
            print(job.result() if job.exception() is None else f"{jobs[job]} failed: {job.exception()!r}", flush=True)


if __name__ == "__main__":
    main()
