"""Results of learning runs on disk: ``results/learning/*.json``, a file for each plan, and a table of each as CSV."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from environment import RESULTS, environment
from filelock import FileLock
from plans import NAMES, Run, read_plan, runs_of

FOLDER = RESULTS / "learning"
COLUMNS = ("algorithm", "label", "env", "seed", "mean", "std", "seconds", "failure")


def stored(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """
    Read the results that there are.

    :param names: of plans; all, if runs may have moved from one to another
    :return: by :attr:`Run.name`, so a run that has been made twice counts once, and as finished if it was
    """
    results = sorted((result for name in names for result in read(name)), key=is_finished)
    return {Run.of(result).name: result for result in results}


def read(*names: str) -> list[dict[str, Any]]:
    """
    Read results.

    :param names: of plans; what has not been run yet is left out
    :return: one for each run
    """
    files = (FOLDER / f"{name}.json" for name in names)
    return [result for file in files if file.is_file() for result in json.loads(file.read_text())["results"]]


def to_write(name: str) -> list[str]:
    """
    List the plans whose results are to be written with one's: results of runs that have moved to another would be lost.

    :param name: of the plan
    :return: it, and the plans that its file has results of
    """
    held = stored([name])
    return [each for each in NAMES if each == name or any(run.name in held for run in runs_of(read_plan(each)))]


def unplanned(names: Iterable[str]) -> list[str]:
    """
    List results that writing would lose, for no plan has their runs any more.

    :param names: of the plans in whose files they are
    :return: names of the runs
    """
    planned = {run.name for name in NAMES for run in runs_of(read_plan(name))}
    return sorted(stored(names).keys() - planned)


def locked() -> FileLock:
    """
    Keep other processes from changing results.

    :return: to be entered
    """
    FOLDER.mkdir(parents=True, exist_ok=True)
    return FileLock(FOLDER / ".lock")


def is_finished(result: Mapping[str, Any] | None) -> bool:
    """
    Tell whether a run is done.

    :param result: what is stored of it, if anything
    :return: whether its final policy has been evaluated
    """
    return result is not None and "failure" not in result


def write(name: str, plan: dict[str, Any], results: list[dict[str, Any]]) -> None:
    """
    Store results.

    :param name: of the plan
    :param plan: the plan
    :param results: of its runs
    """
    FOLDER.mkdir(parents=True, exist_ok=True)
    rows = ",\n".join(json.dumps(result) for result in results)  # a line for each run
    head = json.dumps({"environment": environment(), "plan": plan}, indent=1)
    replace(FOLDER / f"{name}.json", f'{head[:-2]},\n "results": [\n{rows}\n]}}\n')
    text = io.StringIO()
    table = csv.DictWriter(text, COLUMNS, extrasaction="ignore", lineterminator="\n")
    table.writeheader()
    table.writerows(results)
    replace(FOLDER / f"{name}.csv", text.getvalue())


def replace(file: Path, text: str) -> None:
    """
    Write a file, so that whoever is killed meanwhile leaves the one before.

    :param file: to be written
    :param text: what it shall hold
    """
    fresh = file.with_name(f"{file.name}.new")
    fresh.write_text(text)
    os.replace(fresh, file)
