"""
Speed beside sb3-contrib's TRPO: alternating runs in one process, on one thread, with the same hyperparameters.

    python -m benchmarks.speed.run                # everything: about 20 minutes
    python -m benchmarks.speed.run --part learn   # one part: learn, train, fisher, growth or shares
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from unittest import mock

import numpy as np
import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from benchmarks.common.environment import RESULTS, environment
from benchmarks.common.random_env import Vectors
from benchmarks.common.timing import alternate, ratio, rounded, seconds, show
from benchmarks.memory.run import measure_in_own_process
from benchmarks.speed.cases import TimedVecEnv, make_env, make_model
from benchmarks.speed.fisher_products import measure_products
from sb3_trpo.rollouts.collection.acting import ActingPolicy

ROUNDS = 7
TASKS = ("CartPole-v1", "Pendulum-v1", "Hopper-v5", "HalfCheetah-v5")
LEARN_CASES = {
    **dict.fromkeys(TASKS, 2),
    "HalfCheetah-v5x8": 1,
    "HalfCheetah-v5+norm": 2,
    "HalfCheetah-v5+zoo": 2,
    "batched": 1,
}
"""Number of rollouts in each timing."""
TRAIN_CASES = [(width, n) for width in (64, 256) for n in (2048, 16384)]
GROWTH_BATCHES = (2048, 4096, 8192, 16384, 32768, 65536)
GROWTH_WIDTHS = (64, 200, 650, 2200)


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


def measure_learn() -> dict[str, Any]:
    """
    Time ``learn()``, ``train()`` on its last rollout, and the bare environments; on four tasks PPO's as well.

    :return: results by case
    """
    results = {}
    for name, n_rollouts in LEARN_CASES.items():
        packages = ["ours", "sb3-contrib", *(["PPO"] if name in TASKS else [])]
        models = {package: make_model(name, package) for package in packages}
        n_steps = {package: model.n_steps * model.n_envs * n_rollouts for package, model in models.items()}
        jobs = {
            package: partial(model.learn, n_steps[package], reset_num_timesteps=False) for package, model in models.items()
        }
        bare = make_env(name)
        jobs["bare env"] = stepper(bare, n_steps["ours"] // bare.num_envs)
        times = alternate(jobs, ROUNDS)
        trains = alternate({package: model.train for package, model in models.items()}, ROUNDS)
        results[name] = {
            "steps": n_steps["ours"],
            "learn": ratio(times["sb3-contrib"], times["ours"]),
            "train": ratio(trains["sb3-contrib"], trains["ours"]),
            "over_bare_env": ratio(times["ours"], times["bare env"]),
            "steps_per_second": {name: n_steps["ours"] / float(np.median(values)) for name, values in times.items()},
            "seconds": {"learn": rounded(times), "train": rounded(trains)},
        }
        result = results[name]
        if "PPO" in models:
            result["learn_of_ppo"], result["train_of_ppo"] = (ratio(each["PPO"], each["ours"]) for each in (times, trains))
        print(f"| {name} | {show(result['learn'])} | {show(result['over_bare_env'])} | {show(result['train'])} |", flush=True)
    return results


def filled(package: str, n: int, width: int) -> BaseAlgorithm:
    """
    Make a model with a rollout of random numbers.

    :param package: key of ``CLASSES``
    :param n: number of transitions
    :param width: units of each of the two hidden layers
    :return: the model, ready to train
    """
    model = make_model("", package, Vectors(), n_steps=n, policy_kwargs={"net_arch": [width, width]})
    rng, buffer = np.random.default_rng(0), model.rollout_buffer
    for _ in range(n):
        observation, action = rng.normal(size=(1, 17)).astype(np.float32), rng.normal(size=(1, 6)).astype(np.float32)
        with th.no_grad():
            value, log_prob, _ = model.policy.evaluate_actions(th.as_tensor(observation), th.as_tensor(action))
        buffer.add(observation, action, rng.normal(size=1), np.zeros(1), value, log_prob)
    buffer.compute_returns_and_advantage(th.zeros(1), np.zeros(1))
    return model


def measure_train() -> dict[str, Any]:
    """
    Time ``train()`` alone; on images, measure its memory too.

    :return: results by case
    """
    results: dict[str, Any] = {}
    for width, n in TRAIN_CASES:
        times = alternate({package: filled(package, n, width).train for package in ("ours", "sb3-contrib")}, 5)
        name = f"MLP {width}x{width}, {n:,} transitions"
        results[name] = {"train": ratio(times["sb3-contrib"], times["ours"]), "seconds": rounded(times)}
        print(f"| {name} | {show(results[name]['train'])} |", flush=True)
    return results | {"NatureCNN, 512 frames": measure_cnn()}


def measure_cnn() -> dict[str, Any]:
    """
    Time ``train()`` on 512 frames with sb3-contrib's default settings, each run in a new process.

    :return: ratios of time and of peak memory
    """
    runs: dict[str, list[Any]] = {"sb3_trpo": [], "sb3_contrib": []}
    for _ in range(5):
        for package, each in runs.items():
            each.append(measure_in_own_process(package, 512, default_settings=True))
    times, peaks = (
        {package: [run[key] for run in each] for package, each in runs.items()}
        for key in ("seconds", "peak_above_rollout_mib")
    )
    result = {
        "train": ratio(times["sb3_contrib"], times["sb3_trpo"]),
        "peak_memory": ratio(peaks["sb3_contrib"], peaks["sb3_trpo"]),
        "seconds": times,
        "peak_above_rollout_mib": peaks,
    }
    print(f"| NatureCNN, 512 frames | {show(result['train'])}, memory {show(result['peak_memory'])} |", flush=True)
    return result


def measure_growth() -> dict[str, Any]:
    """
    Time ``train()`` for growing batches and networks, and fit the exponents.

    :return: the least of two times for each size, and the exponents
    """
    batches = {n: min(seconds(model.train) for _ in range(2)) for n in GROWTH_BATCHES for model in [filled("ours", n, 64)]}
    sizes = {}
    for width in GROWTH_WIDTHS:
        model = filled("ours", 2048, width)
        sizes[sum(parameter.numel() for parameter in model.policy.parameters())] = min(seconds(model.train) for _ in range(2))
    exponents = [float(np.polyfit(np.log(list(points)), np.log(list(points.values())), 1)[0]) for points in (batches, sizes)]
    print(f"| exponent of the batch {exponents[0]:.2f} | of the parameters {exponents[1]:.2f} |", flush=True)
    return {
        "by_batch": batches,
        "by_parameters": sizes,
        "exponent_of_batch": exponents[0],
        "exponent_of_parameters": exponents[1],
    }


@contextmanager
def timed_acting() -> Iterator[list[float]]:
    """Add up the seconds that policies take to act in the fast loop, in the only item of a list."""
    act, acting = ActingPolicy.act, [0.0]

    def timed_act(self: ActingPolicy, *args: Any) -> np.ndarray:
        actions: list[np.ndarray] = []
        acting[0] += seconds(lambda: actions.append(act(self, *args)))
        return actions[0]

    with mock.patch.object(ActingPolicy, "act", timed_act):
        yield acting


def measure_shares_of(name: str, acting: list[float]) -> dict[str, float]:
    """
    Split the wall time of ``learn()`` on one task into its parts.

    :param name: the task
    :param acting: from :func:`timed_acting`
    :return: share of each part
    """
    env = TimedVecEnv(make_env(name))
    model = make_model(name, "ours", env)
    size = model.n_steps * model.n_envs
    model.learn(size)
    env.seconds = acting[0] = total = 0.0
    parts = {"collect": 0.0, "policy_step": 0.0, "critic": 0.0}
    for _ in range(5):
        total += seconds(partial(model.learn, size, log_interval=None, reset_num_timesteps=False))
        for part in parts:
            parts[part] += model.logger.name_to_value[f"time/{part}_seconds"]
    shares = {"env": env.seconds, "actor": acting[0]}
    shares["buffer and callbacks"] = parts["collect"] - env.seconds - acting[0]
    shares |= {"policy step": parts["policy_step"], "critic": parts["critic"]}
    shares["rest"] = total - sum(shares.values())
    return {part: value / total for part, value in shares.items()}


def measure_shares() -> dict[str, Any]:
    """
    Split the wall time of ``learn()`` into its parts.

    :return: shares by task
    """
    results = {}
    with timed_acting() as acting:
        for name in (*TASKS, "HalfCheetah-v5x8", "HalfCheetah-v5+norm", "batched"):
            results[name] = measure_shares_of(name, acting)
            print(f"| {name} | " + " | ".join(f"{value:.0%}" for value in results[name].values()) + " |", flush=True)
    return results


PARTS: dict[str, Callable[[], dict[str, Any]]] = {
    "learn": measure_learn,
    "train": measure_train,
    "fisher": measure_products,
    "growth": measure_growth,
    "shares": measure_shares,
}


def main() -> None:
    """Measure the parts asked for, print tables and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--part", choices=PARTS, action="append", help="measure this part, keep the others' results")
    chosen = parser.parse_args().part or list(PARTS)
    th.set_num_threads(1)
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / "speed.json"
    results = json.loads(file.read_text()) if file.is_file() else {}
    for part in chosen:
        print(f"\n{part}")
        results[part] = {"environment": environment(), "results": PARTS[part]()}
        file.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
