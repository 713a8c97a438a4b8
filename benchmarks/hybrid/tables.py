"""The table of ``results/hybrid.json``."""

from __future__ import annotations

from statistics import mean
from typing import Any

from benchmarks.common.tables import table


def tables(raw: dict[str, Any]) -> dict[str, str]:
    """
    Tabulate the returns of the ways to train on hybrid actions.

    :param raw: contents of ``hybrid.json``
    :return: Markdown by name
    """
    head = ("actions", "mean return at the end", "of each seed", "mean over all training episodes, update by update")
    return {"hybrid": table(head, (_row(way, runs) for way, runs in by_way(raw["results"]).items()))}


def by_way(results: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """
    Group runs.

    :param results: those of ``hybrid.json``
    :return: the runs of each way, a seed after another
    """
    ways = dict.fromkeys(each["way"] for each in results)
    return {way: [each for each in results if each["way"] == way] for way in ways}


def _row(way: str, runs: list[dict[str, Any]]) -> list[str]:
    means = [run["mean"] for run in runs]
    area = mean(mean(run["curve"]) for run in runs)
    return [way, f"{mean(means):.2f}", ", ".join(f"{each:.2f}" for each in means), f"{area:.2f}"]
