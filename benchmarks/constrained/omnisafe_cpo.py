"""
OmniSafe's CPO on Safety-Gymnasium's velocity tasks, with its own settings, for the table of limits on costs.

    .venv-peers/omnisafe/bin/python -m benchmarks.constrained.omnisafe_cpo --seeds 0

It needs Python 3.10 and an environment of its own, since its packages pin others to old versions; the commands are in
``benchmarks/README.md``. Runs come one after another, with one thread; each writes its own file as it ends, and is skipped if
its file is there.
"""

from __future__ import annotations

import argparse
import csv
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.common.environment import RESULTS, environment

TASKS = ("Ant", "HalfCheetah", "Hopper", "Swimmer", "Walker2d")
N_STEPS = 1_000_000
PACKAGES = ("omnisafe", "safety-gymnasium", "gymnasium", "torch", "numpy")


def settings(seed: int, n_steps: int, folder: str) -> dict[str, Any]:
    """
    Choose what its users have to choose: the budget and one thread. All else is OmniSafe's, its limit of 25 too.

    :param seed: seed of the training
    :param n_steps: timesteps
    :param folder: where it logs
    :return: ``custom_cfgs`` of its agent
    """
    return {
        "seed": seed,
        "train_cfgs": {"total_steps": n_steps, "vector_env_nums": 1, "parallel": 1, "torch_threads": 1, "device": "cpu"},
        "logger_cfgs": {"use_wandb": False, "use_tensorboard": False, "save_model_freq": 10**6, "log_dir": folder},
    }


def run(task: str, seed: int, n_steps: int, file: Path) -> None:
    """
    Train once and write the result.

    :param task: one of ``TASKS``
    :param seed: seed of the training
    :param n_steps: timesteps
    :param file: where to write
    """
    import omnisafe  # only in its own environment

    made_with = environment(PACKAGES)
    with tempfile.TemporaryDirectory() as folder:
        agent = omnisafe.Agent("CPO", f"Safety{task}Velocity-v1", custom_cfgs=settings(seed, n_steps, folder))
        start = time.perf_counter()
        agent.learn()
        seconds = time.perf_counter() - start
        (log,) = Path(folder).rglob("progress.csv")
        rows = list(csv.DictReader(log.open()))
        (config,) = Path(folder).rglob("config.json")
        used = json.loads(config.read_text())["algo_cfgs"]
    columns = ("TotalEnvSteps", "Metrics/EpRet", "Metrics/EpCost", "Metrics/EpLen")
    curve = [[round(float(row[column]), 2) for column in columns] for row in rows]
    result = {
        "task": f"{task}-v5",
        "method": "omnisafe",
        "seed": seed,
        "steps": n_steps,
        "settings": used,
        "seconds": round(seconds, 1),
        "environment": made_with,
        "last_100": {"return": curve[-1][1], "cost": curve[-1][2]},  # its log averages over the last 100 episodes
        "curve": curve,
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".tmp")
    partial.write_text(json.dumps(result) + "\n")
    partial.replace(file)


def main() -> None:
    """Run what is missing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--task", choices=TASKS, nargs="*", default=list(TASKS))
    parser.add_argument("--seeds", type=int, nargs="*", default=[0])
    parser.add_argument("--steps", type=int, default=N_STEPS)
    parser.add_argument("--folder", type=Path, default=RESULTS / "constrained")
    args = parser.parse_args()
    for seed in args.seeds:
        for task in args.task:
            file = args.folder / f"{task}-v5-omnisafe-{seed}.json"
            if not file.is_file():
                run(task, seed, args.steps, file)


if __name__ == "__main__":
    main()
