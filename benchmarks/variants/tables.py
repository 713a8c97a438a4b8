"""The tables of ``results/variants.json``."""

from __future__ import annotations

from statistics import mean
from typing import Any

from benchmarks.common.tables import table
from benchmarks.common.timing import show


def tables(raw: dict[str, Any]) -> dict[str, str]:
    """
    Tabulate the returns and times of the variants.

    :param raw: contents of ``variants.json``
    :return: Markdown by name
    """
    groups = sorted((each["results"] for each in raw["returns"].values()), key=_place)
    head = ("task", "timesteps", "algorithm", "mean return", "of each seed", "seconds of `learn()`")
    updates = ([name, show(each["ratio"])] for name, each in raw["updates"]["pairs"].items())
    return {
        "variants": table(head, map(_row, groups)),
        "variants_updates": table(("time of an update", "ratio, median (least to largest)"), updates),
    }


def _place(runs: list[dict[str, Any]]) -> tuple[str, bool]:
    """Order by task, and ours first."""
    return runs[0]["task"], not runs[0]["algorithm"].endswith("TRPO")


def _row(runs: list[dict[str, Any]]) -> list[str]:
    """Tabulate the seeds of an algorithm on a task."""
    means = [run["mean"] for run in runs]
    seconds = mean(run["seconds"] for run in runs)
    return [
        runs[0]["task"],
        f"{runs[0]['steps']:,}",
        runs[0]["algorithm"],
        f"{mean(means):.1f}",
        ", ".join(f"{each:.1f}" for each in means),
        f"{seconds:.0f}",
    ]
