"""The result of a learning run: its attempts, its training curve and the returns of its final policy."""

from __future__ import annotations

import importlib
import io
import json
import time
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_sb3 import EnvironmentName
from rl_zoo3.utils import get_model_path
from stable_baselines3.common.monitor import load_results
from stable_baselines3.common.save_util import load_from_zip_file

from benchmarks.learning.plans import ALGORITHMS, Run, packages_of
from benchmarks.learning.store import replace
from sb3_trpo.zoo.reporting import final_returns

EPISODES = 20
"""Episodes in an evaluation."""
POINTS = 40
"""Points of a training curve."""
WINDOW = 100
"""Training episodes averaged in a point, as in ``sb3_contrib.json``."""
EVALUATION_SEED = 1000
"""Added to the seed of a run for its evaluation."""
ATTEMPTS, OUTPUT = "attempts.json", "output.txt"
"""Files in a run's folder."""


def note_attempt(
    folder: Path, before: list[dict[str, Any]], start: float, made_with: dict[str, Any], status: int | None
) -> None:
    """
    Store an attempt at a run.

    :param folder: folder of the run
    :param before: earlier attempts
    :param start: its start, by :func:`time.perf_counter`
    :param made_with: machine, versions and commit at the start
    :param status: exit status, ``None`` until it ends
    """
    attempt = {"seconds": round(time.perf_counter() - start, 1), "exit": status, "made_with": made_with}
    replace(folder / ATTEMPTS, json.dumps([*before, attempt]))


def attempts_in(folder: Path) -> list[dict[str, Any]]:
    """
    Read the attempts at a run.

    :param folder: folder of the run
    :return: seconds, exit status, machine, versions and commit of each
    """
    file = folder / ATTEMPTS
    return json.loads(file.read_text()) if file.is_file() else []


def learning_curve(folder: str, n_timesteps: int, is_whole: bool) -> list[list[float]]:
    """
    Summarize the training episodes.

    :param folder: folder with Monitor's files
    :param n_timesteps: timesteps of the whole run
    :param is_whole: whether the run was never interrupted; otherwise Monitor's times include the pause
    :return: timesteps, mean return of the last 100 episodes (fewer at first) and, for a whole run, seconds since the start;
        without points before the end of the first episode
    """
    episodes = load_results(folder)
    ends, returns, seconds = episodes["l"].cumsum().to_numpy(), episodes["r"].to_numpy(), episodes["t"].to_numpy()
    points = []
    for step in np.linspace(0, n_timesteps, POINTS + 1)[1:]:
        until = int(np.searchsorted(ends, step, side="right"))
        if until:
            mean = float(returns[max(0, until - WINDOW) : until].mean())
            points.append([int(step), round(mean, 3), *([round(float(seconds[until - 1]), 1)] if is_whole else [])])
    return points


def measure(run: Run, folder: Path) -> dict[str, Any]:
    """
    Evaluate a run, or note why that is not possible, so that the results of others are stored all the same.

    :param run: the trained run
    :param folder: its folder
    :return: the result to store; ``failure`` is the reason if there is nothing to evaluate
    """
    attempts = attempts_in(folder)
    known = run._asdict() | {"seconds": sum(attempt["seconds"] for attempt in attempts), "attempts": attempts}
    try:
        return known | evaluate(run, folder, is_whole=len(attempts) == 1)
    except Exception as fault:  # no model, an unfinished one, a damaged file
        last_line = (folder / OUTPUT).read_text().strip().rsplit("\n", 1)[-1]
        exit_status = attempts[-1]["exit"] if attempts else "none yet"
        failure = f"exit status {exit_status}: {last_line} ({type(fault).__name__}: {fault})"
        return known | {"failure": failure.replace(f"{folder}", ".")}


def evaluate(run: Run, folder: Path, is_whole: bool) -> dict[str, Any]:
    """
    Evaluate the final policy of a run.

    :param run: the trained run
    :param folder: its folder
    :param is_whole: whether it was never interrupted
    :return: mean and standard deviation of its returns, all of them, and the training curve
    :raises ValueError: if its training has not finished
    """
    algorithm, env = ALGORITHMS[run.algorithm], EnvironmentName(run.env)
    for module in packages_of(run.env):
        importlib.import_module(module)
    with redirect_stdout(io.StringIO()):  # RL Zoo prints which files it reads
        _, model_file, logs = get_model_path(0, str(folder), algorithm.name, env)
        n_timesteps = load_from_zip_file(model_file, device="cpu")[0]["num_timesteps"]
        if n_timesteps < run.settings["n_timesteps"]:
            raise ValueError(f"stopped at {n_timesteps} timesteps")
        returns = final_returns(algorithm.model, model_file, env, EPISODES, EVALUATION_SEED + run.seed)
    return {
        "mean": float(np.mean(returns)),
        "std": float(np.std(returns)),
        "returns": [round(each, 3) for each in returns],
        "curve": learning_curve(logs, run.settings["n_timesteps"], is_whole),
    }
