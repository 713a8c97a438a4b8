"""
Learning: train what a plan lists as a user would, with several runs at a time on one thread each, and evaluate each policy.

    python -m benchmarks.learning.run mujoco                             # plans/mujoco.yml, a run on each core
    python -m benchmarks.learning.run mujoco --jobs 2 --only Hopper-v5   # a part of it
    python -m benchmarks.learning.run mujoco --collect                   # no runs, only the results
    python -m benchmarks.learning.run mujoco --afresh                    # repeat runs that have results

Start the same command again after an interruption: finished runs are not repeated, others resume. A run is finished if its
result is in ``results/learning/raw``, even if its folder is gone. Other settings make another run.

Training is ``python -m sb3_trpo.zoo train`` with the settings of the plan, or ``python -m rl_zoo3.train`` for sb3-contrib.
The final policy is evaluated over 20 deterministic episodes, with raw rewards, in an environment seeded with 1000 + the run's
seed. ``report.py`` tabulates and plots the results.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from functools import partial
from pathlib import Path
from threading import Event, Lock
from types import FrameType
from typing import Any

import torch as th
import yaml
from filelock import FileLock, Timeout
from tqdm import tqdm

from benchmarks.common.environment import ROOT, environment
from benchmarks.learning.measuring import OUTPUT, attempts_in, measure, note_attempt
from benchmarks.learning.plans import ALGORITHMS, NAMES, Run, packages_of, read_plan, runs_of
from benchmarks.learning.store import is_finished, keep, replace, result_of

MINUTE = 60.0
"""Seconds between two updates of the wall time of a run on disk."""
MEASURING = Lock()
"""Held by an evaluation: all share this process and its standard output."""
TRAININGS: set[subprocess.Popen[bytes]] = set()
"""Those under way."""
ENDING = Event()
"""Set when no more trainings may start."""
SETTINGS, RESULT, LOCK = "settings.yml", "result.json", "lock"
"""Files in a run's folder."""


def train(run: Run, folder: Path) -> None:
    """
    Train in another process, and note how long it took.

    :param run: the run
    :param folder: for everything that it writes
    """
    algorithm = ALGORITHMS[run.algorithm]
    checkpoint = {"sb3_trpo.checkpoint.ResumableCheckpoint": {"folder": str(folder / "checkpoints"), "every": 50_000}}
    settings = run.settings | ({"callback": [checkpoint]} if algorithm.resumes else {})
    (folder / SETTINGS).write_text(yaml.safe_dump({run.env: settings}))
    arguments = {
        "--algo": algorithm.name,
        "--env": run.env,
        "--seed": run.seed,
        "--conf-file": folder / SETTINGS,
        "--log-folder": folder,
        "--num-threads": 1,
        "--eval-freq": -1,
        "--verbose": 0,
        "--device": "cpu",
    }
    options = [str(part) for item in arguments.items() for part in item]
    packages = ["--gym-packages", *named] if (named := packages_of(run.env)) else []
    command = [sys.executable, "-m", *algorithm.command, *options, *packages]
    made_with = {key: value for key, value in environment().items() if key != "command"}
    note = partial(note_attempt, folder, attempts_in(folder), time.perf_counter(), made_with)
    own = os.environ | {"OMP_NUM_THREADS": "1"}
    with (
        (folder / OUTPUT).open("a") as output,
        subprocess.Popen(command, stdout=output, stderr=output, env=own, cwd=folder) as training,
    ):
        TRAININGS.add(training)
        if ENDING.is_set():  # it may have been set meanwhile
            training.terminate()
        while training.poll() is None:
            note(status=None)  # remains if this process is killed
            with suppress(subprocess.TimeoutExpired):
                training.wait(MINUTE)
        TRAININGS.remove(training)
    note(status=training.returncode)


def carry_out(run: Run, folder: Path) -> dict[str, Any]:
    """
    Train and evaluate, unless that has been done, and store the result.

    :param run: the run
    :param folder: folder of all runs
    :return: the result; a failure that only says that there is none yet is not stored
    """
    if ENDING.is_set():
        return run._asdict() | {"seconds": 0.0, "failure": "not started"}
    folder = folder / run.name
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / LOCK, timeout=0):
            if not (folder / RESULT).is_file():
                train(run, folder)
            result = evaluated(run, folder)
            if is_finished(result) or not ENDING.is_set():
                keep(run, result)
            return result
    except Timeout:
        return run._asdict() | {"seconds": 0.0, "failure": "under way in another process"}
    except Exception as fault:  # a full disk, say, which may have space when the next run starts
        return run._asdict() | {"seconds": 0.0, "failure": f"{type(fault).__name__}: {fault}"}


def evaluated(run: Run, folder: Path) -> dict[str, Any]:
    """
    Evaluate a run, unless that has been done.

    :param run: the run
    :param folder: its folder
    :return: the result, with a failure if its training has not finished
    """
    if (folder / RESULT).is_file():
        return json.loads((folder / RESULT).read_text()) | {"label": run.label}
    with MEASURING:
        result = measure(run, folder)
    if is_finished(result):
        replace(folder / RESULT, json.dumps(result))
    return result


def collect(run: Run, folder: Path) -> None:
    """
    Store the result of a run that was begun, unless a process is at it.

    :param run: the run
    :param folder: folder of all runs
    """
    folder = folder / run.name
    if attempts_in(folder) or (folder / RESULT).is_file():
        with suppress(Timeout), FileLock(folder / LOCK, timeout=0):
            keep(run, evaluated(run, folder))


def execute(runs: list[Run], folder: Path, jobs: int) -> None:
    """
    Carry out runs, several at a time, and show progress. An interrupt (Ctrl-C, SIGTERM) lets them save first.

    :param runs: the runs
    :param folder: folder of all runs
    :param jobs: number of runs at a time
    """
    ENDING.clear()
    with ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(carry_out, run, folder) for run in runs]
        try:
            for future in tqdm(as_completed(futures), total=len(runs), unit="run"):
                result = future.result()
                outcome = result.get("failure") or f"{result['mean']:.1f} +/- {result['std']:.1f}"
                spent = f"{result['seconds']:.0f} s"
                tqdm.write(f"{result['label']} {result['env']} seed {result['seed']}: {outcome} ({spent})", sys.stderr)
        except KeyboardInterrupt:  # the trainings get it too
            print("Interrupted: running trainings save first, and resume when the same command is run again.")
            raise SystemExit(130) from None
        finally:
            ENDING.set()
            pool.shutdown(cancel_futures=True)


def end(signum: int, frame: FrameType | None) -> None:
    """
    Pass a signal on to the trainings (Ctrl-C reaches them without help), and stop.

    :param signum: SIGTERM
    :param frame: where the signal arrived
    :raises KeyboardInterrupt: always
    """
    ENDING.set()
    for training in tuple(TRAININGS):
        training.send_signal(signum)
    raise KeyboardInterrupt


def arguments() -> argparse.Namespace:
    """
    Read the command line.

    :return: the arguments, and the chosen runs in ``wanted``
    """
    parser = argparse.ArgumentParser(description="Train what a plan lists, and evaluate the final policies.")
    parser.add_argument("plan", choices=NAMES, help="of benchmarks/learning/plans")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs at a time, one thread each")
    parser.add_argument("--only", nargs="+", default=[], help="labels or environments to train, instead of all")
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "learning", help="for logs and checkpoints")
    parser.add_argument("--collect", action="store_true", help="run nothing, gather existing results")
    parser.add_argument(
        "--afresh", action="store_true", help="repeat runs whose results are stored, unless their folder has one"
    )
    args = parser.parse_args()
    if args.jobs < 1:
        parser.error(f"--jobs {args.jobs}: at least 1 run at a time, please.")
    runs = list(runs_of(read_plan(args.plan)))
    known = {name for run in runs for name in (run.env, run.label)}
    if unknown := [name for name in args.only if name not in known]:
        parser.error(f"--only {' '.join(unknown)}: {args.plan}.yml has {', '.join(sorted(known))}.")
    chosen = {run.name: run for run in runs if not args.only or {run.env, run.label} & set(args.only)}
    args.wanted = [*chosen.values()]  # each once, though it may have two labels
    return args


def main() -> None:
    """Carry out a plan."""
    args = arguments()
    th.set_num_threads(1)
    signal.signal(signal.SIGTERM, end)
    folder = args.folder.resolve()
    if args.collect:
        for run in args.wanted:
            collect(run, folder)
        return
    due = [run for run in args.wanted if args.afresh or not is_finished(result_of(run))]
    if due:
        execute(due, folder, args.jobs)
    else:
        print(f"All {len(args.wanted)} runs are finished.")


if __name__ == "__main__":
    main()
