"""The table of ``results/checkpoint.json``."""

from __future__ import annotations

from statistics import median
from typing import Any

from benchmarks.common.tables import table


def tables(raw: dict[str, Any]) -> dict[str, str]:
    """
    Tabulate what checkpoints cost.

    :param raw: contents of ``checkpoint.json``
    :return: Markdown by name
    """
    rows = []
    for each in raw["results"]:
        times = [1000 * seconds for seconds in each["checkpoint_seconds"]]
        time = f"{median(times):.0f} (at most {max(times):.0f})"
        size, share = sum(each["bytes"].values()) / 1024, each["share_percent"]
        rows.append([each["task"], str(each["n_envs"]), f"{each['every']:,}", time, f"{size:,.0f}", f"{share:.2f} %"])
    head = ("task", "environments", "timesteps between two", "a checkpoint, ms", "KiB", "share of wall time")
    return {"checkpoint": table(head, rows)}
