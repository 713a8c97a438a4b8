"""The table and the picture of ``results/constrained``, a file for each run that has ended."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common.pictures import BLUE, GRAY, GREEN, VERMILION, drawing, thousands
from benchmarks.common.tables import table
from sb3_trpo.constrained.velocity_tasks import LIMIT

METHODS = {"cpo": "`ConstrainedTRPO`", "lagrangian": "Lagrangian", "trpo": "`TRPO`, no limit", "omnisafe": "OmniSafe's CPO"}
"""Names of the methods, in order."""
STYLES = {"cpo": (BLUE, "-"), "lagrangian": (GREEN, "-."), "trpo": (VERMILION, "--"), "omnisafe": (GRAY, ":")}
"""Color and line of each method."""
MISSING = "-"
Runs = list[dict[str, Any]]


def grouped(results: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Runs]]:
    """
    Group runs.

    :param results: the runs by name of their file
    :return: the runs of each task and method, by seed; methods without a run are left out
    """
    found: dict[str, dict[str, Runs]] = {}
    for run in sorted(results.values(), key=lambda run: (run["task"], [*METHODS].index(run["method"]), run["seed"])):
        found.setdefault(run["task"], {}).setdefault(run["method"], []).append(run)
    return found


def tables(raw: dict[str, Any]) -> dict[str, str]:
    """
    Tabulate returns and costs at the end of each run.

    :param raw: the runs, by name of their file, under ``results``
    :return: Markdown by name
    """
    tasks = grouped(raw["results"])
    head = (
        "task",
        "method",
        "runs",
        "return",
        "cost of an episode",
        f"runs with at most {LIMIT:g}",
        "return in training",
        "cost in training",
        f"runs with at most {LIMIT:g}",
    )
    rows = [[task, *_row(name, runs)] for task, methods in tasks.items() for name, runs in methods.items()]
    of_all = {name: [run for methods in tasks.values() for run in methods.get(name, [])] for name in METHODS}
    rows += [_total(name, runs) for name, runs in of_all.items() if runs]
    return {"constrained": table(head, rows)}


def final(run: Mapping[str, Any]) -> tuple[float, float] | None:
    """
    Return what the final policy earns and costs, with the noise that it was trained with.

    :param run: a run
    :return: mean return and cost of its evaluation episodes; ``None`` if it was not evaluated
    """
    sampled = run.get("sampled")
    return None if sampled is None else (float(np.mean(sampled["returns"])), float(np.mean(sampled["costs"])))


def in_training(run: Mapping[str, Any]) -> tuple[float, float]:
    """
    Return what the policies at the end of a run earned and cost while they were trained.

    :param run: a run
    :return: mean return and cost of its last 100 episodes
    """
    return float(run["last_100"]["return"]), float(run["last_100"]["cost"])


def _row(name: str, runs: Runs) -> list[str]:
    cells = [METHODS[name], str(len(runs))]
    for measure in (final, in_training):
        measured = [found for run in runs if (found := measure(run)) is not None]
        returns, costs = [earned for earned, _ in measured], [cost for _, cost in measured]
        cells += [spread(returns), spread(costs), kept(costs)]
    return cells


def _total(name: str, runs: Runs) -> list[str]:
    costs = [[found[1] for run in runs if (found := measure(run)) is not None] for measure in (final, in_training)]
    of_each = [[MISSING, MISSING, kept(each)] for each in costs]
    return ["all", METHODS[name], str(len(runs)), *of_each[0], *of_each[1]]


def spread(values: Iterable[float]) -> str:
    """
    Format a mean with the least and the largest.

    :param values: one number for each run
    :return: such as ``24.1 (20.3 to 26.0)``
    """
    known = [*values]
    if not known:
        return MISSING
    digits = ",.0f" if max(map(abs, known)) >= 1000 else ".1f"
    return f"{np.mean(known):{digits}} ({min(known):{digits}} to {max(known):{digits}})"


def kept(costs: Iterable[float]) -> str:
    """
    Count the runs that keep the limit.

    :param costs: cost of each run
    :return: such as ``5 of 5``
    """
    known = [*costs]
    return f"{sum(cost <= LIMIT for cost in known)} of {len(known)}" if known else MISSING


def draw_constrained(results: Mapping[str, dict[str, Any]], file: Path) -> None:
    """
    Draw return and cost while training, a column for each task: the mean over runs, between the least and the largest.

    :param results: the runs by name of their file
    :param file: the picture to save
    """
    tasks = grouped(results)
    with drawing(file, 2.4 * max(len(tasks), 1), 4.4) as figure:
        if not tasks:
            return
        panels = figure.subplots(2, len(tasks), squeeze=False, sharex=True)
        for (task, methods), (of_returns, of_costs) in zip(tasks.items(), panels.T, strict=True):
            for name, runs in methods.items():
                for panel, column in ((of_returns, 1), (of_costs, 2)):
                    steps, values = curves(runs, column)
                    color, line = STYLES[name]
                    panel.plot(steps, values.mean(0), color=color, ls=line, label=METHODS[name].replace("`", ""))
                    panel.fill_between(steps, values.min(0), values.max(0), color=color, alpha=0.15, lw=0)
            of_costs.axhline(LIMIT, color=GRAY, lw=1.5, label="limit")
            of_returns.set(title=task)
            of_costs.set(xlabel="timesteps", yscale="symlog", ylim=(0.0, None))
            thousands(of_costs)
        panels[0, 0].set_ylabel("return")
        panels[1, 0].set_ylabel("cost of an episode")
        handles = {
            label: handle for panel in figure.axes for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)
        }
        figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=4)


def curves(runs: Runs, column: int) -> tuple[np.ndarray, np.ndarray]:
    """
    Bring the curves of runs to the same timesteps.

    :param runs: runs of one task and method
    :param column: 1 for returns, 2 for costs
    :return: timesteps, shape ``(n_points,)``, and a row for each run; where no episode of a run ended, between its neighbors
    """
    tables = [np.array(run["curve"]) for run in runs]
    steps = np.unique(np.concatenate([each[:, 0] for each in tables]))
    return steps, np.array([np.interp(steps, each[:, 0], each[:, column]) for each in tables])
