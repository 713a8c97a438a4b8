"""
Learning: trains what a plan lists as a user would, several runs at a time on one thread each, and measures each final policy.

    python benchmarks/learning.py mujoco                             # benchmarks/plans/mujoco.yml, a run on each core
    python benchmarks/learning.py mujoco --jobs 2 --only Hopper-v5   # a part of it
    python benchmarks/learning.py mujoco --collect                   # no runs, only the results
    python benchmarks/learning.py mujoco --afresh                    # those whose results are stored, too

Finished runs are not repeated, interrupted ones go on: start the same command again. A run is finished if its result is in its
folder or in ``results/learning``, whatever became of the folder. A run whose settings have changed is another run. Training is
``python -m sb3_trpo.zoo train`` with the settings of the plan, ``python -m rl_zoo3.train`` for sb3-contrib's TRPO. The final
policy plays 20 deterministic episodes in an environment seeded with 1000 + the run's seed, for the raw rewards. Results go to
``results/learning``, as JSON and CSV; ``report.py`` tabulates and draws them.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from functools import partial
from pathlib import Path
from threading import Event, Lock
from types import FrameType
from typing import Any

import torch as th
import yaml
from environment import environment
from filelock import FileLock, Timeout
from measuring import OUTPUT, attempts_in, measure, note_attempt
from plans import ALGORITHMS, NAMES, Run, read_plan, runs_of
from store import is_finished, locked, replace, stored, to_write, unplanned, write
from tqdm import tqdm

ROOT = Path(__file__).parent.parent
MINUTE = 60.0
"""In seconds: how often the time that a run has taken is noted."""
MEASURING = Lock()
"""Evaluations share this process and its standard output."""
TRAININGS: set[subprocess.Popen[bytes]] = set()
"""Under way."""
ENDING = Event()
"""No more of them are to be started."""
SETTINGS, RESULT, LOCK = "settings.yml", "result.json", "lock"
"""Of a run's folder."""


def train(run: Run, folder: Path) -> None:
    """
    Train in a process of its own, and note how long that took.

    :param run: what to train
    :param folder: for all that it writes
    """
    algorithm = ALGORITHMS[run.algorithm]
    keeper = {"sb3_trpo.checkpoint.ResumableCheckpoint": {"folder": str(folder / "checkpoints"), "every": 50_000}}
    settings = run.settings | ({"callback": [keeper]} if algorithm.resumes else {})
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
    command = [sys.executable, "-m", *algorithm.command, *(str(part) for item in arguments.items() for part in item)]
    made_with = {key: value for key, value in environment().items() if key != "command"}
    note = partial(note_attempt, folder, attempts_in(folder), time.perf_counter(), made_with)
    own = os.environ | {"OMP_NUM_THREADS": "1"}
    with (
        (folder / OUTPUT).open("a") as output,
        subprocess.Popen(command, stdout=output, stderr=output, env=own, cwd=folder) as training,
    ):
        TRAININGS.add(training)
        if ENDING.is_set():  # since it was started
            training.terminate()
        while training.poll() is None:
            note(status=None)  # which stays if this process is killed
            with suppress(subprocess.TimeoutExpired):
                training.wait(MINUTE)
        TRAININGS.remove(training)
    note(status=training.returncode)


def carry_out(run: Run, folder: Path) -> dict[str, Any]:
    """
    Train and measure, unless that has been done.

    :param run: what to do
    :param folder: of all runs
    :return: what is stored of it
    """
    if ENDING.is_set():
        return run._asdict() | {"seconds": 0.0, "failure": "not started"}
    folder = folder / run.name
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / LOCK, timeout=0):
            if not (folder / RESULT).is_file():
                train(run, folder)
                with MEASURING:
                    result = measure(run, folder)
                if not is_finished(result):  # to be tried again
                    return result
                replace(folder / RESULT, json.dumps(result))
            return json.loads((folder / RESULT).read_text()) | {"label": run.label}
    except Timeout:
        return run._asdict() | {"seconds": 0.0, "failure": "under way in another process"}
    except Exception as fault:  # a full disk, say, which may be better when the next run is begun
        return run._asdict() | {"seconds": 0.0, "failure": f"{type(fault).__name__}: {fault}"}


def results_of(runs: Iterable[Run], folder: Path, before: Mapping[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """
    Gather results.

    :param runs: of the plan
    :param folder: of all runs
    :param before: results that have been stored, by :attr:`Run.name`; a finished one gives way to another finished one only
    :return: of those that have been started
    """
    results = []
    for run in runs:
        file, result = folder / run.name / RESULT, before.get(run.name)
        if file.is_file():
            result = json.loads(file.read_text())
        elif attempts_in(file.parent) and not is_finished(result):
            with suppress(Timeout), FileLock(file.with_name(LOCK), timeout=0):  # a run that is under way has not failed
                result = measure(run, file.parent)
        if result is not None:
            results.append(result | {"label": run.label})
    return results


def execute(runs: list[Run], folder: Path, jobs: int) -> None:
    """
    Carry runs out, several at a time, and show how it goes. An interrupt (Ctrl-C, SIGTERM) lets them save first.

    :param runs: what to do
    :param folder: of all runs
    :param jobs: how many at a time
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
            print("Interrupted: what runs saves itself first, and goes on when the same command is run again.")
            raise SystemExit(130) from None
        finally:
            ENDING.set()
            pool.shutdown(cancel_futures=True)


def end(signum: int, frame: FrameType | None) -> None:
    """
    Pass a signal on to the trainings, which Ctrl-C reaches by itself, and stop.

    :param signum: SIGTERM
    :param frame: where it came
    :raises KeyboardInterrupt: always
    """
    ENDING.set()
    for training in tuple(TRAININGS):
        training.send_signal(signum)
    raise KeyboardInterrupt


def lose_nothing(plan: str) -> None:
    """
    Refuse to write over results that no plan lists.

    :param plan: whose results are to be written
    :raises SystemExit: if there are such results; new ones stay in the folders of their runs
    """
    names = to_write(plan)
    if homeless := unplanned(names):
        raise SystemExit(
            f"Results of {', '.join(names)} that no plan lists any more would be lost: {', '.join(homeless)}. Put their "
            f"settings, as they were, into superseded.yml or tuning.yml, then run {plan} with --collect."
        )


def arguments() -> argparse.Namespace:
    """
    Read the command line.

    :return: what it says, with ``wanted``, the runs that it is about, by :attr:`Run.name`
    """
    parser = argparse.ArgumentParser(description="Train what a plan lists, and measure the final policies.")
    parser.add_argument("plan", choices=NAMES, help="of benchmarks/plans")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs at a time, one thread each")
    parser.add_argument("--only", nargs="+", default=[], help="labels or environments, if not all are wanted now")
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "learning", help="for logs and checkpoints")
    parser.add_argument("--collect", action="store_true", help="run nothing, gather what is there")
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
    args.wanted = {run.name: run for run in runs if not args.only or {run.env, run.label} & set(args.only)}
    return args


def main() -> None:
    """Carry a plan out and store its results."""
    args = arguments()
    th.set_num_threads(1)
    signal.signal(signal.SIGTERM, end)
    folder, known = args.folder.resolve(), stored(NAMES)
    lose_nothing(args.plan)
    due = [run for name, run in args.wanted.items() if args.afresh or not is_finished(known.get(name))]
    if not args.collect and not due:
        print(f"All {len(args.wanted)} runs are finished.")
        return
    try:
        if not args.collect:
            execute(due, folder, args.jobs)
    finally:  # after an interrupt too
        with locked():
            lose_nothing(args.plan)  # plans may have changed meanwhile
            known = stored(NAMES)  # with what others have stored since
            for name in to_write(args.plan):
                plan = read_plan(name)
                write(name, plan, results_of(runs_of(plan), folder, known))


if __name__ == "__main__":
    main()
