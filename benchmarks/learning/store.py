"""Results of learning runs on disk: ``results/learning/*.json``, one file for each plan, and the same as CSV."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock

from benchmarks.common.environment import RESULTS, environment
from benchmarks.learning.plans import NAMES, Run, read_plan, runs_of

FOLDER = RESULTS / "learning"
COLUMNS = ("algorithm", "label", "env", "seed", "mean", "std", "seconds", "failure")


def stored(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """
    Read results by run.

    :param names: names of plans; all, if runs may have moved from one to another
    :return: by :attr:`Run.name`: a run that was made twice counts once, as finished if one of the two is
    """
    results = sorted((result for name in names for result in read(name)), key=is_finished)
    return {Run.of(result).name: result for result in results}


def read(*names: str) -> list[dict[str, Any]]:
    """
    Read results.

    :param names: names of plans; those without results are left out
    :return: one result for each run
    """
    files = (FOLDER / f"{name}.json" for name in names)
    return [result for file in files if file.is_file() for result in json.loads(file.read_text())["results"]]


def to_write(name: str) -> list[str]:
    """
    List the plans to write together with one: results of runs that have moved to another plan would be lost.

    :param name: name of the plan
    :return: this plan, and the plans that have runs with results in its file
    """
    held = stored([name])
    return [each for each in NAMES if each == name or any(run.name in held for run in runs_of(read_plan(each)))]


def unplanned(names: Iterable[str]) -> list[str]:
    """
    List results that writing would lose, because no plan has their runs any more.

    :param names: names of the plans to write
    :return: names of the runs
    """
    planned = {run.name for name in NAMES for run in runs_of(read_plan(name))}
    return sorted(stored(names).keys() - planned)


def locked() -> FileLock:
    """
    Keep other processes from changing results.

    :return: a context manager
    """
    FOLDER.mkdir(parents=True, exist_ok=True)
    return FileLock(FOLDER / ".lock")


def is_finished(result: Mapping[str, Any] | None) -> bool:
    """
    Check whether a run is finished.

    :param result: its stored result, if any
    :return: whether its final policy has been evaluated
    """
    return result is not None and "failure" not in result


def write(name: str, plan: dict[str, Any], results: list[dict[str, Any]]) -> None:
    """
    Store results, unless they are stored already: what they were made with remains as it is.

    :param name: name of the plan
    :param plan: the plan
    :param results: one for each of its runs
    """
    file = FOLDER / f"{name}.json"
    if file.is_file() and json.loads(file.read_text()).items() >= {"plan": plan, "results": results}.items():
        return
    FOLDER.mkdir(parents=True, exist_ok=True)
    rows = ",\n".join(json.dumps(result) for result in results)  # a line for each run
    head = json.dumps({"environment": environment(), "plan": plan}, indent=1)
    replace(file, f'{head[:-2]},\n "results": [\n{rows}\n]}}\n')
    text = io.StringIO()
    table = csv.DictWriter(text, COLUMNS, extrasaction="ignore", lineterminator="\n")
    table.writeheader()
    table.writerows(results)
    replace(FOLDER / f"{name}.csv", text.getvalue())


def replace(file: Path, text: str) -> None:
    """
    Replace a file at once, so that the old one remains if this process is killed.

    :param file: the file
    :param text: its new contents
    """
    fresh = file.with_name(f"{file.name}.new")
    fresh.write_text(text)
    os.replace(fresh, file)
