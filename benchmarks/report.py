"""
Tables and figures from the learning runs in ``results/learning``; trains nothing.

    python benchmarks/report.py

Tables go to ``results/learning/report.md``, figures beside it; ``study.py`` says what their intervals are.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from environment import RESULTS
from learning_pictures import draw_curves, draw_improvement
from published import DDPG, MARKS, RL_ZOO, SHARE, Mark
from study import (
    OURS,
    PEER,
    Study,
    aggregates,
    intervals,
    iqm,
    normalised,
    seconds_to_reach,
    uninterrupted,
)

FOLDER = RESULTS / "learning"


def number(value: float) -> str:
    """
    Write a return.

    :param value: the return
    :return: whole, or with a decimal if it is small
    """
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.1f}"


def between(estimate: Iterable[float]) -> str:
    """
    Write an estimate.

    :param estimate: value and interval
    :return: such as ``3,512 [3,401, 3,590]``
    """
    value, low, high = map(number, estimate)
    return f"{value} [{low}, {high}]"


def mean_of(scores: np.ndarray) -> str:
    """
    Write a mean.

    :param scores: (runs,)
    :return: mean and number of runs, nothing if there are none
    """
    return f"{number(scores.mean())} ({len(scores)})" if len(scores) else ""


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """
    Write a Markdown table.

    :param head: its columns
    :param rows: its cells
    :return: Markdown
    """
    head = list(head)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows))


def summary(study: Study, env: str, method: str) -> list[str]:
    """
    Describe the runs of a method on a task.

    :param study: the results
    :param env: the task
    :param method: the method
    :return: cells: task, method, n, failures, mean and standard deviation over the runs, median, IQM, least and largest
    """
    scores = study.scores(env, method)
    spread = f"{number(scores.mean())} +/- {number(scores.std(ddof=1))}" if len(scores) > 1 else number(scores.mean())
    estimate = between(intervals(iqm, scores[:, None, None])[:, 0]) if len(scores) > 2 else ""
    extremes = f"{number(scores.min())} to {number(scores.max())}"
    return [
        env,
        method,
        str(len(scores)),
        str(study.failures(env, method)),
        spread,
        number(np.median(scores)),
        estimate,
        extremes,
    ]


def summaries(study: Study, envs: Iterable[str]) -> str:
    """
    Tabulate final returns.

    :param study: the results
    :param envs: the tasks
    :return: Markdown
    """
    head = ("task", "method", "runs", "failed", "mean +/- std over runs", "median", "IQM [95 %]", "least to largest")
    return table(head, (summary(study, env, method) for env in envs for method in study.methods(env)))


def against(study: Study, marks: Mapping[str, Mark]) -> str:
    """
    Compare with what others have published.

    :param study: the results
    :param marks: by task
    :return: Markdown
    """
    rows = []
    for env, mark in marks.items():
        scores = study.scores(env, OURS)
        if len(scores):
            outcome = "met" if scores.mean() > mark.target else "missed"
            published = f"{number(mark.best)} ({mark.source})" if mark.best is not None else ""
            measured = mean_of(study.scores(env, PEER))
            rows.append([env, mean_of(scores), measured, published, number(mark.target), outcome])
    return table(("task", "ours (runs)", "sb3-contrib, measured (runs)", "best published", "target", ""), rows)


def rl_zoo_table(study: Study) -> str:
    """
    Compare with RL Zoo's single runs.

    :param study: the results
    :return: Markdown
    """
    rows = []
    for env, theirs in RL_ZOO.items():
        scores = study.scores(env, OURS)
        if len(scores):
            outcome = "met" if scores.mean() >= theirs else "missed"
            rows.append([env, mean_of(scores), mean_of(study.scores(env, PEER)), number(theirs), outcome])
    return table(("task", "ours (runs)", "sb3-contrib, measured (runs)", "RL Zoo (one run)", ""), rows)


def aggregate(study: Study, envs: list[str]) -> str:
    """
    Compare with sb3-contrib over all tasks.

    :param study: the results
    :param envs: the tasks
    :return: Markdown
    """
    ours, peer = (normalised(study, envs, method) for method in (OURS, PEER))
    estimates = np.stack([intervals(aggregates, each) for each in (ours, peer)])
    rows = [
        [name, *(f"{value:.2f} [{low:.2f}, {high:.2f}]" for value, low, high in estimates[:, :, row])]
        for row, name in enumerate(("IQM", "median of the tasks' means", "mean"))
    ]
    return table((f"of {len(envs)} tasks", f"{OURS}, {len(ours)} runs each", f"{PEER}, {len(peer)} runs each"), rows)


def wall_clock(study: Study, envs: Iterable[str]) -> str:
    """
    Compare the time to the training return that sb3-contrib ends with, of runs made side by side.

    :param study: the results of runs made in turn on one machine, whose curves have seconds
    :param envs: the tasks
    :return: Markdown
    """
    rows = []
    for env in envs:
        level = float(np.mean([run["curve"][-1][1] for run in study.runs(env, PEER)]))
        whole = float(np.mean([run["curve"][-1][2] for run in study.runs(env, PEER)]))
        reached = [seconds_to_reach(run, level) for run in study.runs(env, OURS)]
        times = [np.inf if each is None else each for each in reached]
        share = np.median(times) / whole
        shown = ", ".join("never" if each is None else f"{each:.0f}" for each in reached)
        rows.append([env, number(level), f"{whole:.0f}", shown, f"{share:.2f}", "met" if share <= SHARE else "missed"])
    head = ("task", f"{PEER}'s final training return", "its seconds", f"seconds of {OURS} to reach it", "median / its", "")
    return table(head, rows)


def choices(study: Study) -> str:
    """
    Compare general choices for the constructor.

    :param study: the results, with a method for each choice
    :return: Markdown
    """
    envs = study.envs()
    labels = list(dict.fromkeys(label for env in envs for label in study.methods(env)))
    return table(("task", *labels), ([env, *(mean_of(study.scores(env, label)) for label in labels)] for env in envs))


def published_of_ddpg() -> str:
    """
    Give DDPG's published returns, for orientation: a run of our own takes hours, and starts over when it is interrupted.

    :return: a sentence
    """
    returns = ", ".join(f"{task} {number(value)}" for task, value in DDPG.items())
    return f"DDPG's as published by Tianshou, on -v3, best evaluations within 1M steps, 10 seeds: {returns}."


def read(*names: str) -> list[dict[str, Any]]:
    """
    Read results.

    :param names: of files in ``results/learning``; what has not been run yet is left out
    :return: one for each run
    """
    files = (FOLDER / f"{name}.json" for name in names)
    return [row for file in files if file.is_file() for row in json.loads(file.read_text())["results"]]


def spent(rows: Iterable[Mapping[str, Any]]) -> str:
    """
    Sum runs up.

    :param rows: their results
    :return: how many, and the time that they took on a core
    """
    seconds = [row["seconds"] for row in rows]
    return f"{len(seconds)} runs, {sum(seconds) / 3600:.1f} core hours"


PROTOCOL = (
    "The final policy plays 20 deterministic episodes for the raw rewards, in an environment seeded with 1000 + the run's "
    "seed (sb3-contrib's of MuJoCo in 5 environments, seeded from there on). Every run that was started counts."
)


def main() -> None:
    """Write the report."""
    ours, others = read("mujoco", "rl_zoo", "pybullet"), read("sb3_contrib", "baselines")
    tuning = read("tuning", "superseded", "defaults")
    study, side_by_side = Study(ours + others), Study(uninterrupted(read("wall_clock")))
    superseded, general = Study(read("superseded")), Study(read("defaults"))
    compared = [env for env in study.envs(OURS, PEER) if env in MARKS]
    timed = side_by_side.envs(OURS, PEER)
    effort = (
        f"Tuning, on other seeds: {spent(tuning)}, and about one core hour of runs whose results are lost. "
        f"Reported: {spent(ours)}. Of other algorithms: {spent(others)}."
    )
    sections = {
        "Against what others have published, 1M steps": (effort, against(study, MARKS)),
        "Against RL Zoo's runs of sb3-contrib's TRPO": (effort, rl_zoo_table(study)),
        "All tasks together, returns divided by sb3-contrib's mean return": (effort, aggregate(study, compared)),
        "Final returns": (f"{effort} {published_of_ddpg()}", summaries(study, study.envs(OURS))),
        "Final returns of settings that were to be reported, and were then changed": (
            "What these runs showed counts as tuning.",
            summaries(superseded, superseded.envs(OURS)),
        ),
        "General choices for the constructor's defaults, without normalisation, mean return (runs)": (
            "Seeds of tuning. All else is as by default; the first column has sb3-contrib's defaults, the second ours.",
            choices(general) if general.envs() else "Not run yet.",
        ),
        "Wall-clock time, runs made in turn on one machine": (
            "sb3-contrib's are means over its runs. One that was interrupted has no clock, and is left out. "
            f"Target: {SHARE:.2f}.",
            wall_clock(side_by_side, timed) if timed else "Not run yet.",
        ),
    }
    pictures = {
        "Learning curves, IQM over runs and 95 % interval": "learning_curves.png",
        "Probability that a run of ours ends above one of sb3-contrib's": "improvement.png",
    }
    draw_curves(study, [env for env in study.envs(OURS) if env in MARKS], FOLDER / "learning_curves.png")
    draw_improvement(study, compared, FOLDER / "improvement.png")
    if timed:
        draw_curves(side_by_side, timed, FOLDER / "wall_clock.png", against_seconds=True)
        pictures["Learning curves against wall-clock time"] = "wall_clock.png"
    parts = [f"## {title}\n\n{PROTOCOL} {note}\n\n{body}\n" for title, (note, body) in sections.items()]
    parts += [f"## {title}\n\n![{title}]({file})\n" for title, file in pictures.items()]
    (FOLDER / "report.md").write_text("# Learning results, by `python benchmarks/report.py`\n\n" + "\n".join(parts))
    print(FOLDER / "report.md")


if __name__ == "__main__":
    main()
