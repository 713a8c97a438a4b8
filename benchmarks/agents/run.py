"""
Trained agents: one for each MuJoCo task of the learning results, trained as a user would, with a seed that is reported there.

    python -m benchmarks.agents.run --jobs 2

About half an hour on two cores. Agents go to ``trained_agents``, in the layout of RL Zoo's, and their returns to
``results/agents.json``. A run whose model is in ``runs/agents`` is not repeated.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from huggingface_sb3 import EnvironmentName

from benchmarks.common.environment import RESULTS, ROOT, environment
from benchmarks.learning.measuring import EPISODES, EVALUATION_SEED
from benchmarks.learning.plans import Run, read_plan, runs_of
from sb3_trpo import TRPO
from sb3_trpo.zoo.reporting import final_returns

AGENTS = ROOT / "trained_agents"
LOGS = Path("runs") / "agents"
"""Log folder of the trainings, relative to the repository's root: it is written into the agents' settings."""
SETTINGS = ("args.yml", "config.yml", "vecnormalize.pkl")
"""Files beside an agent that RL Zoo reads."""


def chosen() -> list[Run]:
    """
    Choose what to train.

    :return: the first reported run of each task of the plan ``mujoco``
    """
    first: dict[str, Run] = {}
    for run in runs_of(read_plan("mujoco")):
        first.setdefault(run.env, run)
    return [*first.values()]


def train(run: Run) -> None:
    """
    Train with RL Zoo, in another process on one thread, unless that has been done.

    :param run: task and seed; settings are those of ``zoo_configs``
    :raises CalledProcessError: if the training fails
    """
    if (ROOT / LOGS / "trpo" / f"{run.env}_1" / f"{run.env}.zip").is_file():
        return
    command = f"-m sb3_trpo.zoo train --algo trpo --env {run.env} --seed {run.seed} --log-folder {LOGS}"
    options = "--num-threads 1 --device cpu --eval-freq -1 --verbose 0"
    own = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, *command.split(), *options.split()], cwd=ROOT, env=own, check=True)


def collect(run: Run) -> dict[str, Any]:
    """
    Copy an agent to ``trained_agents``, and evaluate the copy.

    :param run: the training that has finished
    :return: the result to store
    """
    name = f"{run.env}_1"
    trained, agent = ROOT / LOGS / "trpo" / name, AGENTS / "trpo" / name
    (agent / run.env).mkdir(parents=True, exist_ok=True)
    shutil.copy(trained / f"{run.env}.zip", agent)
    for file in SETTINGS:
        shutil.copy(trained / run.env / file, agent / run.env)
    with redirect_stdout(io.StringIO()):  # RL Zoo prints which files it reads
        returns = evaluate(run.env, run.seed, EPISODES)
    size = sum(file.stat().st_size for file in agent.rglob("*") if file.is_file())
    mean, std = float(np.mean(returns)), float(np.std(returns))
    print(f"{run.env}, seed {run.seed}: {mean:.1f} +/- {std:.1f}, {size / 1024:.0f} KiB", flush=True)
    return {
        "env": run.env,
        "seed": run.seed,
        "mean": mean,
        "std": std,
        "returns": [round(each, 3) for each in returns],
        "bytes": size,
    }


def evaluate(env: str, seed: int, episodes: int) -> list[float]:
    """
    Evaluate an agent of ``trained_agents``, with deterministic actions and unnormalized rewards.

    :param env: environment ID
    :param seed: seed of its training
    :param episodes: number of episodes
    :return: the return of each
    """
    model = AGENTS / "trpo" / f"{env}_1" / f"{env}.zip"
    return final_returns(TRPO, str(model), EnvironmentName(env), episodes, EVALUATION_SEED + seed)


def main() -> None:
    """Train, collect and evaluate every agent."""
    parser = argparse.ArgumentParser(description="Train, collect and evaluate the agents in trained_agents.")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="trainings at a time, one thread each")
    args = parser.parse_args()
    th.set_num_threads(1)
    runs = chosen()
    with ThreadPoolExecutor(args.jobs) as pool:
        list(pool.map(train, runs))
    results = [collect(run) for run in runs]
    (RESULTS / "agents.json").write_text(json.dumps({"environment": environment(), "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
