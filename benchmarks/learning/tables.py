"""Markdown tables of learning runs, for ``report.py``; ``study.py`` defines their intervals."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from benchmarks.common.tables import table
from benchmarks.learning.published import SHARE, Mark
from benchmarks.learning.study import OURS, PEER, Scale, Study, aggregates, intervals, iqm, mean, normalized, seconds_to_reach

LEVELS = {"last training return": lambda run: run["curve"][-1][1], "final evaluation": lambda run: run["mean"]}
"""Two definitions of the return that a run ends with."""


def number(value: float) -> str:
    """
    Format a return.

    :param value: the return
    :return: a whole number from 1,000 on, else one decimal
    """
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.1f}"


def between(estimate: Iterable[float]) -> str:
    """
    Format an estimate.

    :param estimate: value, lower and upper end
    :return: such as ``3,512 [3,401, 3,590]``
    """
    value, low, high = map(number, estimate)
    return f"{value} [{low}, {high}]"


def runs_in(study: Study, env: str, method: str) -> str:
    """
    Count the runs of a method on a task.

    :param study: the results
    :param env: the task
    :param method: the method
    :return: such as ``10``, or ``9 of 10`` if one has not finished
    """
    finished, failed = len(study.runs(env, method)), study.failures(env, method)
    return f"{finished} of {finished + failed}" if failed else f"{finished}"


def mean_of(study: Study, env: str, method: str, interval: bool = True) -> str:
    """
    Format a mean.

    :param study: the results
    :param env: the task
    :param method: the method
    :param interval: whether to add its interval, if there are more than two runs
    :return: mean and number of runs; empty if there are none
    """
    scores = study.scores(env, method)
    if not len(scores):
        return f"none ({runs_in(study, env, method)})" if study.failures(env, method) else ""
    has_interval = interval and len(scores) > 2
    estimate = between(intervals(mean, scores[:, None, None])[:, 0]) if has_interval else number(scores.mean())
    return f"{estimate} ({runs_in(study, env, method)})"


def spread_of(scores: np.ndarray) -> str:
    """
    Format a mean with the standard deviation over the runs.

    :param scores: (runs,)
    :return: both; for a single run its return
    """
    if not len(scores):
        return "none"
    return f"{number(scores.mean())} +/- {number(scores.std(ddof=1))}" if len(scores) > 1 else number(scores[0])


def seeds_of(runs: Iterable[Mapping[str, Any]]) -> str:
    """
    Format the seeds of runs.

    :param runs: their results
    :return: such as ``0 to 9`` or ``0, 2``
    """
    seeds = sorted(run["seed"] for run in runs)
    if len(seeds) > 2 and seeds == list(range(seeds[0], seeds[-1] + 1)):
        return f"{seeds[0]} to {seeds[-1]}"
    return ", ".join(map(str, seeds))


def summary(study: Study, env: str, method: str) -> list[str]:
    """
    Summarize the runs of a method on a task.

    :param study: the results
    :param env: the task
    :param method: the method
    :return: cells: task, method, seeds, failures, mean and standard deviation over the runs, median, IQM, least and largest
    """
    scores = study.scores(env, method)
    return [
        env,
        method,
        seeds_of(study.runs(env, method)),
        str(study.failures(env, method)),
        spread_of(scores),
        number(np.median(scores)) if len(scores) else "",
        between(intervals(iqm, scores[:, None, None])[:, 0]) if len(scores) > 2 else "",
        f"{number(scores.min())} to {number(scores.max())}" if len(scores) else "",
    ]


def summaries(study: Study, method: str = "method") -> str:
    """
    Tabulate final returns.

    :param study: the results
    :param method: title of the column of methods
    :return: Markdown
    """
    head = ("task", method, "seeds", "not finished", "mean +/- std over runs", "median", "IQM [95 %]", "least to largest")
    return table(head, (summary(study, env, each) for env in study.envs() for each in study.methods(env)))


def unlike(settings: Mapping[str, Any], present: Mapping[str, Any]) -> str:
    """
    List differences between settings.

    :param settings: settings of a run
    :param present: the settings to compare them with
    :return: settings with another value, then those that are missing
    """
    other = [f"{name} {value}" for name, value in sorted(settings.items()) if present.get(name) != value]
    return ", ".join(other + [f"no {name}" for name in sorted(present) if name not in settings])


def reported_before(superseded: Study, env: str) -> str:
    """
    Format the means of settings that were meant to be reported, and then changed.

    :param superseded: their results, with a method for each
    :param env: the task
    :return: the means, with the numbers of runs
    """
    return ", ".join(mean_of(superseded, env, method, interval=False) for method in superseded.methods(env))


def against(study: Study, superseded: Study, marks: Mapping[str, Mark]) -> str:
    """
    Compare with published results.

    :param study: the results
    :param superseded: results of settings that were later changed
    :param marks: published results by task
    :return: Markdown; a target is met if the mean reaches it and all runs have finished
    """
    rows = []
    for env, mark in marks.items():
        if len(study.scores(env, OURS)) or study.failures(env, OURS):
            outcome = "met" if is_met(study, env, mark) else "missed"
            measured = (mean_of(study, env, OURS), reported_before(superseded, env), mean_of(study, env, PEER))
            best = f"{number(mark.best)} ({mark.source})" if mark.best is not None else ""
            single = number(mark.single) if mark.single is not None else ""
            rows.append([env, *measured, best, single, number(mark.target), outcome])
    measured = ("ours: mean [95 %] (runs)", "earlier settings, other seeds (runs)", "sb3-contrib, measured (runs)")
    return table(("task", *measured, "best mean published", "RL Zoo's one run", "target", ""), rows)


def is_met(study: Study, env: str, mark: Mark) -> bool:
    """
    Check whether a target is met.

    :param study: the results
    :param env: a task on which we have runs
    :param mark: what others have published, and the target
    :return: whether the mean reaches the target, and all runs have finished
    """
    return not study.failures(env, OURS) and bool(study.scores(env, OURS).mean() >= mark.target)


def missed(study: Study, marks: Mapping[str, Mark]) -> str:
    """
    List the targets that are missed.

    :param study: the results
    :param marks: published results by task
    :return: a sentence for each task: mean and target
    """
    lines = []
    for env, mark in marks.items():
        if study.runs(env, OURS) and not is_met(study, env, mark):
            lines.append(f"- {env}: {mean_of(study, env, OURS)}, target {number(mark.target)}")
    return "\n".join(lines)


def aggregate(study: Study, envs: list[str], scale: Scale) -> str:
    """
    Compare with another method over all tasks.

    :param study: the results
    :param envs: the tasks
    :param scale: what normalized returns are measured by: the other method's mean is 1
    :return: Markdown
    """
    ours, peer = (normalized(study, envs, method, scale) for method in (OURS, scale.one))
    estimates = np.stack([intervals(aggregates, each) for each in (ours, peer)])
    rows = []
    for name, (value, low, high) in zip(("IQM", "median of the tasks' means", "mean"), estimates.T, strict=True):
        cells = [f"{value[each]:.2f} [{low[each]:.2f}, {high[each]:.2f}]" for each in (0, 1)]
        rows.append([name, *cells, "met" if low[0] > high[1] else "missed"])
    head = (
        f"of {len(envs)} tasks",
        f"{OURS}, {len(ours)} runs each",
        f"{scale.one}, {len(peer)} runs each",
        "intervals apart",
    )
    return table(head, rows)


def beside(study: Study, envs: Iterable[str], other: str) -> str:
    """
    Tabulate our final returns beside another method's.

    :param study: the results
    :param envs: tasks on which both have runs
    :param other: the other method
    :return: means with the least and the largest run, and the share of pairs of runs in which ours ended higher
    """
    rows, counts = [], []
    for env in envs:
        scores = [study.scores(env, method) for method in (OURS, other)]
        cells = [f"{number(each.mean())} ({number(each.min())} to {number(each.max())})" for each in scores]
        higher = (scores[0][:, None] > scores[1][None]).mean()
        rows.append([env, *cells, f"{higher:.0%}"])
        counts.append([len(each) for each in scores])
    heads = [
        f"{method}, {' or '.join(str(each) for each in sorted({*column}))} runs"
        for method, column in zip((OURS, other), zip(*counts, strict=True), strict=True)
    ]
    return table(("task", *heads, f"{OURS} higher"), rows)


def improvements(probabilities: Mapping[str, np.ndarray], other: str = PEER) -> str:
    """
    Tabulate probabilities of improvement.

    :param probabilities: by task, with their intervals
    :param other: the other method
    :return: Markdown
    """
    rows = ([env, "{:.2f} [{:.2f}, {:.2f}]".format(*estimate)] for env, estimate in probabilities.items())
    return table(("task", f"P(a run of {OURS} > one of {other}) [95 %]"), rows)


def seconds(run: Mapping[str, Any], level: float) -> str:
    """
    Format when a run reached a level.

    :param run: its result
    :param level: a training return
    :return: seconds, or ``never``
    """
    reached = seconds_to_reach(run, level)
    return "never" if reached is None else f"{reached:.0f}"


def wall_clock(study: Study) -> str:
    """
    Compare the time to the return that sb3-contrib ends with.

    :param study: results of runs made in turn on one machine, with times in their curves
    :return: Markdown
    """
    rows = []
    for env in study.envs(OURS, PEER):
        ours, peers = study.runs(env, OURS), study.runs(env, PEER)
        whole = float(np.mean([run["curve"][-1][2] for run in peers]))
        for name, level, share in levels_of(study, env):
            first = (", ".join(seconds(run, level) for run in runs) for runs in (ours, peers))
            rows.append([env, f"{name}: {number(level)}", f"{whole:.0f}", *first, f"{share:.3f}"])
            rows[-1].append("met" if share <= SHARE else "missed")
    head = ("task", f"{PEER}'s", "its seconds", f"seconds of {OURS} to reach it", f"of {PEER}'s runs", "median / its", "")
    return table(head, rows)


def lengths(study: Study, other: str) -> str:
    """
    Compare how long runs take.

    :param study: results of runs made in turn on one machine
    :param other: the other method
    :return: Markdown
    """
    rows = []
    for env in study.envs(OURS, other):
        times = [[run["seconds"] for run in study.runs(env, method)] for method in (OURS, other)]
        middles = [float(np.median(each)) for each in times]
        cells = [f"{middle:.0f} ({len(each)})" for middle, each in zip(middles, times, strict=True)]
        rows.append([env, *cells, f"{middles[1] / middles[0]:.1f}"])
    return table(("task", OURS, other, f"{other} / {OURS}"), rows)


def levels_of(study: Study, env: str) -> list[tuple[str, float, float]]:
    """
    Compare the times to the returns that sb3-contrib's runs end with, for both definitions of that return.

    :param study: results of runs made in turn on one machine, with times in their curves
    :param env: a task on which both have runs
    :return: name of the definition, the return, and our median time as a share of the mean time of sb3-contrib's whole runs
    """
    peers = study.runs(env, PEER)
    whole = float(np.mean([run["curve"][-1][2] for run in peers]))
    found = []
    for name, of in LEVELS.items():
        level = float(np.mean([of(run) for run in peers]))
        times = [seconds_to_reach(run, level) for run in study.runs(env, OURS)]
        found.append((name, level, float(np.median([np.inf if each is None else each for each in times]) / whole)))
    return found


def slow(study: Study) -> str:
    """
    List the targets of wall-clock time that are missed.

    :param study: results of runs made in turn on one machine, with times in their curves
    :return: a sentence for each task and definition of the return
    """
    shares = ((env, *each) for env in study.envs(OURS, PEER) for each in levels_of(study, env))
    return "\n".join(
        f"- {env}, time to {PEER}'s {name}: "
        + (f"{share:.3f} of its time" if np.isfinite(share) else "not reached by most runs")
        + f", target {SHARE:.2f}"
        for env, name, _, share in shares
        if share > SHARE
    )


def choices(study: Study) -> str:
    """
    Compare choices of the constructor's defaults.

    :param study: the results, with a method for each choice
    :return: Markdown
    """
    envs = study.envs()
    labels = list(dict.fromkeys(label for env in envs for label in study.methods(env)))
    return table(("task", *labels), ([env, *(choice(study, env, label) for label in labels)] for env in envs))


def choice(study: Study, env: str, label: str) -> str:
    """
    Format the result of a choice on a task.

    :param study: the results
    :param env: the task
    :param label: label of the choice
    :return: mean, standard deviation and number of runs; empty if there are none
    """
    return f"{spread_of(study.scores(env, label))} ({runs_in(study, env, label)})" if label in study.methods(env) else ""


def spent(rows: Iterable[Mapping[str, Any]]) -> str:
    """
    Sum up runs.

    :param rows: their results
    :return: number of runs, and the time that they took on a core
    """
    times = [row["seconds"] for row in rows]
    return f"{len(times)} runs, {sum(times) / 3600:.1f} core hours"


def efforts(tuning: Iterable[Mapping[str, Any]], reported: Iterable[Mapping[str, Any]]) -> str:
    """
    Tabulate the cost of each task.

    :param tuning: results of tuning
    :param reported: reported results
    :return: Markdown
    """
    kinds = [list(tuning), list(reported)]
    rows = []
    for env in dict.fromkeys(row["env"] for row in kinds[1]):
        times = [[row["seconds"] for row in kind if row["env"] == env] for kind in kinds]
        rows.append([env, *(cell for each in times for cell in (str(len(each)), f"{sum(each) / 3600:.2f}"))])
    return table(("task", "runs of tuning", "core hours", "reported runs", "core hours"), rows)
