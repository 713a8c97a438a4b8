"""The table and the picture of ``results/state_kl.json``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common.pictures import BLUE, GRAY, VERMILION, drawing
from benchmarks.common.tables import table

UNBOUNDED, SHOWN = "none", "largest, 5 x target_kl"
"""Bounds that the picture compares, by their labels."""


def tables(raw: dict[str, Any]) -> dict[str, str]:
    """
    Tabulate the KL of the steps and what a bound on single states costs.

    :param raw: contents of ``state_kl.json``
    :return: Markdown by name
    """
    grouped: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for each in raw["results"]:
        grouped.setdefault((each["env"], each["bound"]), []).append(each)
    rows = []
    for (env, bound), runs in grouped.items():
        mean, largest, fraction = (np.concatenate([run[key] for run in runs]) for key in ("mean", "max", "fraction"))
        returns = [run["return"][-1] for run in runs]
        rows.append([
            env,
            bound,
            f"{np.median(mean):.4f}",
            f"{np.median(largest):.3f}",
            f"{largest.max():.2f}",
            f"{np.median(fraction):.2f}",
            f"{np.mean(returns):,.0f} ({min(returns):,.0f} to {max(returns):,.0f})",
        ])  # fmt: skip
    head = ("task", "`max_state_kl`", "mean KL, median", "largest KL, median", "its largest", "step, median", "last return")
    return {"state_kl": table(head, rows)}


def draw_state_kl(results: list[dict[str, Any]], file: Path) -> None:
    """
    Draw mean and largest KL of each update of the first seed, with and without a bound, in a panel for each task.

    :param results: those of ``state_kl.json``
    :param file: the picture to save
    """
    envs, colors = list(dict.fromkeys(each["env"] for each in results)), {UNBOUNDED: VERMILION, SHOWN: BLUE}
    first = [each for each in results if each["seed"] == results[0]["seed"] and each["bound"] in colors]
    with drawing(file, 8.0, 3.4) as figure:
        for panel, env in zip(figure.subplots(1, len(envs), sharey=True), envs, strict=True):
            for each in (each for each in first if each["env"] == env):
                updates, color = range(1, len(each["mean"]) + 1), colors[each["bound"]]
                label = "no bound" if each["bound"] == UNBOUNDED else f"max_state_kl={each['max_state_kl']:g}"
                panel.plot(updates, each["max"], color=color, lw=1.2, label=f"largest, {label}")
                panel.plot(updates, each["mean"], color=color, ls=":", label=f"mean, {label}")
                if "max_state_kl" in each:
                    panel.axhline(each["max_state_kl"], color=GRAY, lw=1)
            panel.set(title=env, xlabel="update", yscale="log")
        figure.axes[0].set_ylabel("KL(old || new), nats")
        figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside upper right", ncols=2)
