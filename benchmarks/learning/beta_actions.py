"""
Mode or mean: the returns of trained Beta policies by which of them they act deterministically.

    python -m benchmarks.learning.beta_actions       # after `python -m benchmarks.learning.run beta`, whose models it needs

Each final policy is evaluated over 20 episodes, by its mean, by its mode, and with its noise, in environments with the seed of
its reported evaluation. Policies that were evaluated before are not evaluated again.
"""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from huggingface_sb3 import EnvironmentName
from rl_zoo3.utils import get_model_path
from tqdm import tqdm

from benchmarks.common.environment import RESULTS, ROOT, environment
from benchmarks.common.tables import table
from benchmarks.learning.measuring import EPISODES, EVALUATION_SEED
from benchmarks.learning.plans import ALGORITHMS, Run, read_plan, runs_of
from benchmarks.learning.run import RESULT
from benchmarks.learning.store import replace
from sb3_trpo.distributions.beta import BetaDistribution
from sb3_trpo.zoo.reporting import final_returns

FILE = RESULTS / "beta_actions.json"
WAYS = {"mean": BetaDistribution.mean, "mode": BetaDistribution.mode, "with noise": BetaDistribution.sample}
"""What evaluations act by."""


@contextmanager
def acting(way: str) -> Iterator[None]:
    """
    Have Beta policies act in another way where deterministic actions are asked for.

    :param way: key of ``WAYS``
    """
    usual = BetaDistribution.mean
    BetaDistribution.mean = WAYS[way]  # type: ignore[method-assign]  # meanwhile
    try:
        yield
    finally:
        BetaDistribution.mean = usual  # type: ignore[method-assign]  # as before


def measure(run: Run, folder: Path) -> dict[str, float]:
    """
    Evaluate a policy in all ways.

    :param run: a run that has finished
    :param folder: folder of all runs
    :return: mean return by way
    """
    algorithm, env = ALGORITHMS[run.algorithm], EnvironmentName(run.env)
    found = {}
    for way in WAYS:
        th.manual_seed(run.seed)
        with acting(way), redirect_stdout(io.StringIO()):  # RL Zoo prints which files it reads
            _, model_file, _ = get_model_path(0, str(folder / run.name), algorithm.name, env)
            returns = final_returns(algorithm.model, model_file, env, EPISODES, EVALUATION_SEED + run.seed)
        found[way] = round(float(np.mean(returns)), 3)
    return found


def tables(raw: dict[str, Any]) -> dict[str, str]:
    """
    Tabulate the mean return over runs.

    :param raw: the contents of the file of results
    :return: Markdown by name
    """
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for result in raw["results"]:
        groups.setdefault((result["env"], result["label"]), []).append(result)
    rows = []
    for (env, label), results in groups.items():
        means = [f"{np.mean([result[way] for result in results]):,.1f}" for way in WAYS]
        rows.append([env, label, str(len(results)), *means])
    return {"beta_actions": table(("task", "policy", "runs", *WAYS), rows)}


def main() -> None:
    """Evaluate the policies whose models are there."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "learning", help="with the runs of the plan")
    folder = parser.parse_args().folder
    th.set_num_threads(1)
    known = json.loads(FILE.read_text())["results"] if FILE.is_file() else []
    by_run = {(each["env"], each["label"], each["seed"]): each for each in known}
    finished = (run for run in runs_of(read_plan("beta")) if (folder / run.name / RESULT).is_file())
    wanted = [run for run in finished if "beta" in run.label]
    for run in tqdm(wanted):
        key = (run.env, run.label, run.seed)
        if key not in by_run:
            by_run[key] = dict(zip(("env", "label", "seed"), key, strict=True)) | measure(run, folder)
    contents = {"environment": environment(), "results": [by_run[key] for key in sorted(by_run)]}
    replace(FILE, json.dumps(contents, indent=1) + "\n")


if __name__ == "__main__":
    main()
