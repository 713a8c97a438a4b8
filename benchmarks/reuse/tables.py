"""
The tables of ``results/reuse``, a file for each run that has ended, and the verdict.

The rule was fixed before the runs: a variant pays if it gains at least 10 % of area under the training curve on three of the
five tasks, and loses more than one standard error of the final return on none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from benchmarks.common.tables import table

NAMES = {
    "m1": "M = 1, plain TRPO",
    "half": "M = 1, half the transitions",
    "m3": "M = 3",
    "m7": "M = 7",
    "m3-no-v-trace": "M = 3, no V-trace",
    "m3-newest-critic": "M = 3, critic on the newest",
    "m3-renormalized": "M = 3, normalized again",
    "m3-bounded": "M = 3, weights at most 1",
}
"""Names of the variants, in order."""
TASKS = ("HalfCheetah-v5", "Hopper-v5", "Walker2d-v5", "Ant-v5", "Swimmer-v5")
BASE = "m1"
GAIN = 1.1
"""Area over that of plain TRPO that counts as a gain."""
GAINS_NEEDED = 3
MISSING = "-"
Runs = list[dict[str, Any]]


class Estimate(NamedTuple):
    """
    A mean over seeds.

    :param mean: the mean
    :param error: its standard error; NaN with a single seed
    """

    mean: float
    error: float


def area(run: Mapping[str, Any]) -> float:
    """
    Average a training curve.

    :param run: a run
    :return: the mean over its points of the return in training
    """
    return float(np.mean([each for _, each in run["curve"]]))


def final(run: Mapping[str, Any]) -> float:
    """
    Return what the final policy earns.

    :param run: a run
    :return: mean return of its evaluation episodes
    """
    return float(np.mean(run["deterministic"]))


def estimate(values: Sequence[float]) -> Estimate:
    """
    Estimate a mean.

    :param values: one for each seed, at least one
    :return: mean and standard error
    """
    n = len(values)
    return Estimate(float(np.mean(values)), float(np.std(values, ddof=1)) / math.sqrt(n) if n > 1 else math.nan)


def grouped(results: Mapping[str, dict[str, Any]]) -> dict[tuple[str, str], Runs]:
    """
    Group runs by task and variant.

    :param results: the runs by name of their file
    :return: the runs of each pair, by seed
    """
    found: dict[tuple[str, str], Runs] = {}
    for run in sorted(results.values(), key=lambda run: run["seed"]):
        found.setdefault((run["task"], run["variant"]), []).append(run)
    return found


class Comparison(NamedTuple):
    """
    A variant beside plain TRPO on one task, on the seeds that both have.

    :param n_seeds: their number
    :param areas: of the variant, and of plain TRPO
    :param finals: the same for the final return
    """

    n_seeds: int
    areas: tuple[Estimate, Estimate]
    finals: tuple[Estimate, Estimate]

    @property
    def gains(self) -> bool:
        """Whether the area is larger by what counts."""
        return self.areas[0].mean >= GAIN * self.areas[1].mean

    @property
    def loses(self) -> bool | None:
        """Whether the final return is lower by more than a standard error of the difference; ``None`` with a single seed."""
        ours, base = self.finals
        error = math.hypot(ours.error, base.error)
        return None if math.isnan(error) else base.mean - ours.mean > error


def compare(ours: Runs, base: Runs) -> Comparison | None:
    """
    Compare a variant with plain TRPO.

    :param ours: the variant's runs on a task
    :param base: those of plain TRPO
    :return: the comparison; ``None`` if no seed has both
    """
    seeds = {run["seed"] for run in ours} & {run["seed"] for run in base}
    if not seeds:
        return None

    def both(measure: Callable[[Mapping[str, Any]], float]) -> tuple[Estimate, Estimate]:
        first, second = (estimate([measure(run) for run in runs if run["seed"] in seeds]) for runs in (ours, base))
        return first, second

    return Comparison(len(seeds), both(area), both(final))


def verdict(comparisons: Sequence[Comparison]) -> str:
    """
    Apply the rule.

    :param comparisons: of one variant, of the tasks that were run
    :return: whether it pays; ``open`` while a task is missing, or has a single seed
    """
    if len(comparisons) < len(TASKS) or any(each.loses is None for each in comparisons):
        return "open"
    pays = sum(each.gains for each in comparisons) >= GAINS_NEEDED and not any(each.loses for each in comparisons)
    return "pays" if pays else "does not pay"


def tables(raw: dict[str, Any]) -> dict[str, str]:
    """
    Tabulate areas, final returns, verdicts and weights.

    :param raw: the runs, by name of their file, under ``results``
    :return: Markdown by name
    """
    runs = grouped(raw["results"])
    found = {
        (task, name): comparison
        for task in TASKS
        for name in NAMES
        if (comparison := compare(runs.get((task, name), []), runs.get((task, BASE), []))) is not None
    }
    head = ("task", "variant", "seeds", "area", "over plain TRPO's", "final return", "over plain TRPO's")
    rows = [_row(task, name, comparison) for (task, name), comparison in found.items()]
    head_of_verdicts = ("variant", "tasks", "10 % more area", "a lower final return", "by the rule")
    verdicts = [_verdict_row(name, [each for (_, n), each in found.items() if n == name]) for name in NAMES if name != BASE]
    weighed = [(task, name) for task in TASKS for name in NAMES if any(run["weights"] for run in runs.get((task, name), []))]
    head_of_weights = (
        "task",
        "variant",
        "mean weight",
        "largest weight",
        "effective share",
        "least share",
        "drift of normalization, nats",
    )
    return {
        "reuse": table(head, rows),
        "reuse_verdict": table(head_of_verdicts, verdicts),
        "reuse_weights": table(head_of_weights, [_weight_row(*pair, runs[pair]) for pair in weighed]),
    }


def _row(task: str, name: str, comparison: Comparison) -> list[str]:
    cells = [task, NAMES[name], str(comparison.n_seeds)]
    for ours, base in (comparison.areas, comparison.finals):
        cells += [shown(ours), MISSING if name == BASE else f"{ours.mean / base.mean:.2f}"]
    return cells


def _verdict_row(name: str, comparisons: list[Comparison]) -> list[str]:
    gains, losses = sum(each.gains for each in comparisons), sum(bool(each.loses) for each in comparisons)
    return [NAMES[name], f"{len(comparisons)} of {len(TASKS)}", str(gains), str(losses), verdict(comparisons)]


def _weight_row(task: str, name: str, runs: Runs) -> list[str]:
    _, means, largest, shares, least, drifts = zip(*(row for run in runs for row in run["weights"]), strict=True)
    known = [each for each in drifts if each is not None]
    drift = f"{np.mean(known):.2g}" if known else MISSING
    return [
        task,
        NAMES[name],
        f"{np.mean(means):.3f}",
        f"{max(largest):.3g}",
        f"{np.mean(shares):.3f}",
        f"{min(least):.2f}",
        drift,
    ]


def shown(found: Estimate) -> str:
    """
    Format a mean and its standard error.

    :param found: the estimate
    :return: such as ``3,512 ± 40``; the mean alone with a single seed
    """
    digits = ",.0f" if abs(found.mean) >= 1000 else ".1f"
    return f"{found.mean:{digits}}" + ("" if math.isnan(found.error) else f" ± {found.error:{digits}}")
