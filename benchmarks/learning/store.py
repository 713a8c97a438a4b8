"""
Results of learning runs on disk: ``results/learning/raw``, a file for each run, written as the run ends.

A plan only lists runs. So an interruption loses the runs under way and no other, and a run that moves to another plan takes
its result along.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.common.environment import RESULTS
from benchmarks.learning.plans import Run, read_plan, runs_of

FOLDER = RESULTS / "learning"


def file_of(run: Run) -> Path:
    """
    Return where the result of a run belongs.

    :param run: the run
    :return: its file, which may not exist
    """
    return FOLDER / "raw" / f"{run.name}.json"


def result_of(run: Run) -> dict[str, Any] | None:
    """
    Read the result of a run.

    :param run: the run
    :return: its result, ``None`` if there is none
    """
    file = file_of(run)
    return json.loads(file.read_text()) | {"label": run.label} if file.is_file() else None


def read(*plans: str) -> list[dict[str, Any]]:
    """
    Read the results of plans.

    :param plans: their names
    :return: a result for each run that has one, in the order of the plans
    """
    found = (result_of(run) for name in plans for run in runs_of(read_plan(name)))
    return [result for result in found if result is not None]


def read_once(plans: Iterable[str]) -> list[dict[str, Any]]:
    """
    Read the results of plans, each once though it may have two labels.

    :param plans: their names
    :return: the results, in the order of the plans
    """
    return [*{Run.of(result).name: result for result in read(*plans)}.values()]


def imported(name: str) -> list[dict[str, Any]]:
    """
    Read results that no plan can make here: of another version, or by another script.

    :param name: name of a file in ``results/learning``
    :return: the results
    """
    return json.loads((FOLDER / f"{name}.json").read_text())["results"]


def is_finished(result: Mapping[str, Any] | None) -> bool:
    """
    Check whether a run is finished.

    :param result: its result, if any
    :return: whether its final policy has been evaluated
    """
    return result is not None and "failure" not in result


def keep(run: Run, result: Mapping[str, Any]) -> None:
    """
    Store a result, unless it would replace that of a finished run by a failure.

    :param run: the run
    :param result: its result
    """
    if not is_finished(result) and is_finished(result_of(run)):
        return
    file = file_of(run)
    file.parent.mkdir(parents=True, exist_ok=True)
    replace(file, json.dumps({key: value for key, value in result.items() if key != "label"}) + "\n")


def replace(file: Path, text: str) -> None:
    """
    Replace a file at once, so that the old one remains if this process is killed.

    :param file: the file
    :param text: its new contents
    """
    fresh = file.with_name(f"{file.name}.new")
    fresh.write_text(text)
    os.replace(fresh, file)
