"""Whole calls of ``learn()`` beside sb3-contrib's and PPO's, and beside the bare environments."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from stable_baselines3.common.vec_env import VecEnv

from benchmarks.common.timing import alternate, ratio, rounded, show
from benchmarks.speed.cases import CASES, make_model

ROUNDS = 7


def stepper(env: VecEnv, n_steps: int) -> Callable[[], None]:
    """
    Make a job that only steps environments, with actions sampled beforehand.

    :param env: the environments, wrapped as for ``learn()``
    :param n_steps: steps per run
    :return: the job
    """
    env.reset()
    actions = [np.array([env.action_space.sample() for _ in range(env.num_envs)]) for _ in range(64)]

    def run() -> None:
        for step in range(n_steps):
            env.step(actions[step % 64])

    return run


def measure_learn(name: str, rounds: int = ROUNDS, **settings: Any) -> dict[str, Any]:
    """
    Time ``learn()`` and the bare environments of one case; where PPO takes part, also ``train()`` on the last rollout.

    :param name: key of ``CASES``
    :param rounds: number of timings of each
    :param settings: replace keywords of the constructors
    :return: ratios, steps per second and raw times
    """
    case = CASES[name]
    packages = [*case.classes, *(["PPO"] if case.has_ppo else [])]
    models = {package: make_model(case, package, **settings) for package in packages}
    n_steps = {package: model.n_steps * model.n_envs * case.n_rollouts for package, model in models.items()}
    jobs = {package: partial(model.learn, n_steps[package], reset_num_timesteps=False) for package, model in models.items()}
    bare = case.make_env()
    jobs["bare env"] = stepper(bare, n_steps["ours"] // bare.num_envs)
    times = alternate(jobs, rounds, case.clock)
    result: dict[str, Any] = {
        "clock": "CPU" if case.in_cpu_time else "wall",
        "steps": n_steps["ours"],
        "learn": ratio(times["sb3-contrib"], times["ours"]),
        "over_bare_env": ratio(times["ours"], times["bare env"]),
        "steps_per_second": {name: n_steps["ours"] / float(np.median(values)) for name, values in times.items()},
        "seconds": {"learn": rounded(times)},
    }
    if case.has_ppo:
        trains = alternate({package: model.train for package, model in models.items()}, rounds)
        result["seconds"]["train"] = rounded(trains)
        result["train"] = ratio(trains["sb3-contrib"], trains["ours"])
        result["learn_of_ppo"], result["train_of_ppo"] = (ratio(each["PPO"], each["ours"]) for each in (times, trains))
    print(f"| {name} | {show(result['learn'])} | {show(result['over_bare_env'])} |", flush=True)
    return result
