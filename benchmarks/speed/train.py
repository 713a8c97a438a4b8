"""``train()`` alone beside sb3-contrib's, and how its time grows."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm

from benchmarks.common.random_env import Vectors
from benchmarks.common.timing import alternate, ratio, rounded, seconds, show
from benchmarks.memory.run import measure_in_own_process
from benchmarks.speed.cases import N_CRITIC_UPDATES, TRPOS, quiet

TRAIN_CASES = [(width, n) for width in (64, 256) for n in (2048, 16384)]
GROWTH_BATCHES = (2048, 4096, 8192, 16384, 32768, 65536)
GROWTH_WIDTHS = (64, 200, 650, 2200)


def filled(package: str, n: int, width: int) -> BaseAlgorithm:
    """
    Make a model with a rollout of random numbers.

    :param package: key of ``TRPOS``
    :param n: number of transitions
    :param width: units of each of the two hidden layers
    :return: the model, ready to train
    """
    settings = {"n_steps": n, "n_critic_updates": N_CRITIC_UPDATES, "policy_kwargs": {"net_arch": [width, width]}}
    model = quiet(TRPOS[package]("MlpPolicy", Vectors(), seed=0, device="cpu", **settings))
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
        times = alternate({package: filled(package, n, width).train for package in TRPOS}, 5)
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
