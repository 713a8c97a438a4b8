"""The table of ``results/agents.json``."""

from __future__ import annotations

from typing import Any

from benchmarks.common.tables import table


def tables(raw: dict[str, Any]) -> dict[str, str]:
    """
    Tabulate what the trained agents reach.

    :param raw: contents of ``agents.json``
    :return: Markdown by name
    """
    rows = []
    for each in raw["results"]:
        digits = 1 if abs(each["mean"]) < 1000 else 0
        mean, std = (f"{each[key]:,.{digits}f}" for key in ("mean", "std"))
        rows.append([each["env"], str(each["seed"]), mean, std, f"{each['bytes'] / 1024:.0f}"])
    return {"agents": table(("task", "seed", "mean return", "standard deviation of the episodes", "KiB"), rows)}
