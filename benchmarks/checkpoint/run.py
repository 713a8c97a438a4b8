"""
What checkpoints cost: seconds and bytes of each, and their share of a run's wall time.

Each task is trained on one thread with the default settings, VecNormalize, Monitor files, a CSV log and an EvalCallback.
Checkpoints are timed within the run.

    python -m benchmarks.checkpoint.run
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch as th
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env import VecNormalize

from benchmarks.common.environment import RESULTS, environment
from sb3_trpo import TRPO
from sb3_trpo.checkpoint import ResumableCheckpoint
from sb3_trpo.checkpoint.run_folder import checkpoints_in

TASKS = {"CartPole-v1": 1, "Hopper-v5": 1, "HalfCheetah-v5": 1, "Humanoid-v5": 8}
"""Number of environments for each task."""


class Timed(ResumableCheckpoint):
    """Measures how long each checkpoint takes."""

    def __init__(self, folder: Path, every: int) -> None:
        super().__init__(folder, every=every, verbose=0)
        self.seconds: list[float] = []

    def _save(self) -> None:
        start = time.perf_counter()
        super()._save()
        self.seconds.append(time.perf_counter() - start)


def measure(task: str, n_envs: int, total: int, every: int) -> dict[str, Any]:
    """
    Train with checkpoints, and measure them.

    :param task: environment ID
    :param n_envs: number of environments
    :param total: timesteps of the run
    :param every: timesteps between checkpoints
    :return: seconds, bytes and share of the wall time
    """
    with tempfile.TemporaryDirectory(dir=".") as name:  # a real disk: /tmp may be in memory
        folder = Path(name)
        model = TRPO("MlpPolicy", VecNormalize(make_vec_env(task, n_envs, seed=0, monitor_dir=str(folder))), seed=0)
        model.set_logger(configure(str(folder), ["csv"]))
        evaluation_env = VecNormalize(make_vec_env(task, seed=1), training=False, norm_reward=False)
        evaluation = EvalCallback(evaluation_env, eval_freq=every // n_envs, log_path=name, verbose=0)
        timed = Timed(folder / "run", every)
        start = time.perf_counter()
        model.learn(total, callback=[evaluation, timed])
        wall = time.perf_counter() - start
        newest = checkpoints_in(timed.path)[0]
        sizes = {path.name: path.stat().st_size for path in newest.iterdir()}
    return {
        "task": task,
        "n_envs": n_envs,
        "timesteps": model.num_timesteps,
        "every": every,
        "wall_seconds": round(wall, 2),
        "checkpoint_seconds": [round(each, 4) for each in timed.seconds],
        "share_percent": round(100 * sum(timed.seconds) / wall, 3),
        "bytes": sizes,
    }


def main() -> None:
    """Measure every task, print a table and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--total", type=int, default=200_000, help="timesteps of each run")
    parser.add_argument("--every", type=int, default=50_000, help="timesteps between checkpoints")
    args = parser.parse_args()
    th.set_num_threads(1)
    results = []
    print("| task | envs | a checkpoint, ms | KiB | share of wall time |\n|---|---|---|---|---|")
    for task, n_envs in TASKS.items():
        result = measure(task, n_envs, args.total, args.every)
        results.append(result)
        size, ms = sum(result["bytes"].values()) / 1024, 1000 * median(result["checkpoint_seconds"])
        worst = 1000 * max(result["checkpoint_seconds"])
        print(
            f"| {task} | {n_envs} | {ms:.0f} (at most {worst:.0f}) | {size:.0f} | {result['share_percent']:.2f}% |", flush=True
        )
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "checkpoint.json").write_text(json.dumps({"environment": environment(), "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
