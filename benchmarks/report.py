"""
Tables and figures from the learning runs in ``results/learning``; trains nothing.

    python benchmarks/report.py

Tables go to ``results/learning/report.md``, figures beside it. Intervals are 95 % percentile intervals of a bootstrap with
10,000 resamples, stratified by task, by rliable (Agarwal et al. 2021); IQM is the mean of the middle half of the runs.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from environment import RESULTS
from matplotlib.figure import Figure
from rliable import library as rly, metrics
from scipy.stats import trim_mean

FOLDER = RESULTS / "learning"
RESAMPLES = 10_000
OURS, PEER = "sb3_trpo", "sb3-contrib"
NAMES = {"trpo": OURS, "ppo": "PPO", "a2c": "A2C", "ddpg": "DDPG"}
COLOURS = {OURS: "C0", PEER: "C1", "PPO": "C2", "A2C": "C3", "DDPG": "C4"}


class Mark(NamedTuple):
    """
    What others have published of a task, at 1M steps.

    :param best: mean return over several seeds
    :param source: who
    :param target: what we mean to beat
    """

    best: float | None
    source: str
    target: float


MARKS = {
    "HalfCheetah-v5": Mark(4471, "Tianshou, -v3, 10 seeds", 5000),
    "Hopper-v5": Mark(3372, "sb3-contrib, -v3, 3 seeds", 3400),
    "Walker2d-v5": Mark(4502, "sb3-contrib, -v3, 3 seeds", 4600),
    "Ant-v5": Mark(None, "", 2000),
    "Ant-v4": Mark(3554, "sb3-contrib, -v3, 3 seeds", 3600),
    "Swimmer-v5": Mark(359, "sb3-contrib, -v3, 3 seeds", 355),
    "Humanoid-v5": Mark(1030, "", 1100),
    "Reacher-v5": Mark(-4.5, "", -4.5),
    "InvertedDoublePendulum-v5": Mark(9243, "", 9250),
}
RL_ZOO = {
    "CartPole-v1": 500.0,
    "Pendulum-v1": -174.6,
    "Acrobot-v1": -83.1,
    "MountainCar-v0": -107.3,
    "MountainCarContinuous-v0": 92.5,
    "LunarLander-v3": 133.2,
    "LunarLanderContinuous-v3": 262.4,
    "BipedalWalker-v3": 182.3,
    "HalfCheetahBulletEnv-v0": 2758.8,
    "AntBulletEnv-v0": 2560.6,
    "HopperBulletEnv-v0": 2565.4,
    "Walker2DBulletEnv-v0": 1483.5,
    "ReacherBulletEnv-v0": 14.7,
}
"""RL Zoo's benchmark.md, algorithm trpo: one run each, LunarLander as -v2."""


class Study:
    """
    Results of runs, by task and method.

    :param rows: from ``results/learning/*.json``; failed runs have no ``mean``
    """

    def __init__(self, rows: Iterable[Mapping[str, Any]]) -> None:
        self._rows: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
        for row in rows:
            self._rows.setdefault((row["env"], NAMES.get(row["label"], row["label"])), []).append(row)

    def runs(self, env: str, method: str) -> list[Mapping[str, Any]]:
        """Give the runs that have finished."""
        return [row for row in self._rows.get((env, method), []) if "mean" in row]

    def failures(self, env: str, method: str) -> int:
        """Count the runs that have not."""
        return len(self._rows.get((env, method), [])) - len(self.runs(env, method))

    def scores(self, env: str, method: str) -> np.ndarray:
        """Give the final mean return of each run."""
        return np.array([row["mean"] for row in self.runs(env, method)])

    def envs(self, *methods: str) -> list[str]:
        """Give the tasks that all these methods have been tried on, in the order of the results."""
        return list(dict.fromkeys(env for env, _ in self._rows if all(self.runs(env, method) for method in methods)))

    def methods(self, env: str) -> list[str]:
        """Give the methods that a task has been tried with."""
        return [method for tried, method in self._rows if tried == env and self.runs(env, method)]


def iqm(scores: np.ndarray) -> np.ndarray:
    """
    Average the middle half of all runs on all tasks.

    :param scores: (runs, tasks, points)
    :return: (points,)
    """
    return trim_mean(scores.reshape(-1, scores.shape[-1]), 0.25, axis=0)


def intervals(of: Callable[..., np.ndarray], *scores: np.ndarray) -> np.ndarray:
    """
    Estimate statistics.

    :param of: gives them for arrays like ``scores``
    :param scores: (runs, tasks, ...) of each method that they compare
    :return: (3, statistics): values, lower and upper ends of the 95 % intervals
    """
    points, ends = rly.get_interval_estimates(
        {"": scores if len(scores) > 1 else scores[0]}, of, reps=RESAMPLES, random_state=np.random.RandomState(0)
    )
    return np.vstack([points[""], ends[""]])


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
            peer = study.scores(env, PEER)
            outcome = "met" if scores.mean() > mark.target else "missed"
            published = f"{number(mark.best)} ({mark.source})" if mark.best is not None else ""
            measured = f"{number(peer.mean())} ({len(peer)})" if len(peer) else ""
            rows.append([env, f"{number(scores.mean())} ({len(scores)})", measured, published, number(mark.target), outcome])
    return table(("task", "ours (runs)", "sb3-contrib, measured (runs)", "best published", "target", ""), rows)


def rl_zoo_table(study: Study) -> str:
    """
    Compare with RL Zoo's single runs.

    :param study: the results
    :return: Markdown
    """
    rows = [
        [env, f"{number(scores.mean())} ({len(scores)})", number(theirs), "met" if scores.mean() >= theirs else "missed"]
        for env, theirs in RL_ZOO.items()
        if len(scores := study.scores(env, OURS))
    ]
    return table(("task", "ours (runs)", "RL Zoo (one run)", ""), rows)


def normalised(study: Study, envs: Iterable[str], method: str) -> np.ndarray:
    """
    Divide returns by the mean of sb3-contrib's, task by task.

    :param study: the results
    :param envs: tasks on which sb3-contrib's mean is positive, and as many runs on each
    :param method: the method
    :return: (runs, tasks)
    """
    columns = [study.scores(env, method) / study.scores(env, PEER).mean() for env in envs]
    return np.stack([column[: min(map(len, columns))] for column in columns], axis=1)


def aggregates(scores: np.ndarray) -> np.ndarray:
    """
    Give the statistics that rliable recommends.

    :param scores: (runs, tasks)
    :return: IQM, median, mean
    """
    return np.array([of(scores) for of in (metrics.aggregate_iqm, metrics.aggregate_median, metrics.aggregate_mean)])


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


def probability_of_improvement(study: Study, env: str) -> np.ndarray:
    """
    Estimate how likely a run of ours ends above one of sb3-contrib's (Agarwal et al. 2021, section 4).

    :param study: the results
    :param env: the task
    :return: (3,): the probability and its 95 % interval
    """
    pair = (study.scores(env, method)[:, None] for method in (OURS, PEER))
    return intervals(lambda ours, peer: np.array([metrics.probability_of_improvement(ours, peer)]), *pair)[:, 0]


def curves(study: Study, env: str, method: str) -> np.ndarray:
    """
    Give learning curves on a common grid.

    :param study: the results
    :param env: the task
    :param method: the method
    :return: (runs, points, 3): timesteps, mean return of the last 100 training episodes, seconds where they have been stored;
        only the points that all runs have
    """
    rows = [np.array([(*point, np.nan)[:3] for point in row["curve"]]) for row in study.runs(env, method) if row["curve"]]
    shared = set.intersection(*(set(row[:, 0]) for row in rows)) if rows else set()
    return np.array([row[np.isin(row[:, 0], list(shared))] for row in rows])


def draw_curves(study: Study, envs: list[str], file: Path, against_seconds: bool = False) -> None:
    """
    Draw training returns of all methods, with the IQM over runs and its 95 % interval, a panel for each task.

    :param study: the results
    :param envs: the tasks
    :param file: the picture
    :param against_seconds: whether the abscissa is the mean wall-clock time instead of timesteps
    """
    columns = min(3, len(envs))
    lines = -(-len(envs) // columns)
    with mpl.rc_context({"axes.grid": True, "grid.alpha": 0.3}):
        figure = Figure(figsize=(4.5 * columns, 3.2 * lines), layout="constrained")
        panels = figure.subplots(lines, columns, squeeze=False).flat
        for panel, env in zip(panels, envs, strict=False):
            for method in study.methods(env):
                runs = curves(study, env, method)
                abscissa = runs[:, :, 2 if against_seconds else 0].mean(0) if runs.size else np.array([np.nan])
                if not np.isnan(abscissa).any():
                    middle, low, high = intervals(iqm, runs[:, None, :, 1])
                    panel.plot(abscissa, middle, color=COLOURS[method], label=f"{method} ({len(runs)})")
                    panel.fill_between(abscissa, low, high, color=COLOURS[method], alpha=0.2, lw=0)
            panel.set(title=env, xlabel="seconds" if against_seconds else "timesteps", ylabel="training return")
            panel.legend(fontsize="small")
        for panel in panels:
            panel.remove()
        figure.savefig(file, dpi=110)


def draw_improvement(study: Study, envs: list[str], file: Path) -> None:
    """
    Draw the probability of improvement over sb3-contrib.

    :param study: the results
    :param envs: the tasks
    :param file: the picture
    """
    with mpl.rc_context({"axes.grid": True, "grid.alpha": 0.3}):
        figure = Figure(figsize=(6, 0.5 + 0.45 * len(envs)), layout="constrained")
        axes = figure.subplots()
        for row, env in enumerate(reversed(envs)):
            point, low, high = probability_of_improvement(study, env)
            axes.plot([low, high], [row, row], color="C0", lw=6, alpha=0.4, solid_capstyle="butt")
            axes.plot(point, row, "o", color="C0")
        axes.axvline(0.5, color="black", lw=1)
        axes.set(
            yticks=range(len(envs)), yticklabels=envs[::-1], xlim=(-0.02, 1.02), xlabel=f"P(a run of {OURS} > one of {PEER})"
        )
        figure.savefig(file, dpi=110)


def seconds_to_reach(run: Mapping[str, Any], level: float) -> float | None:
    """
    Say when a run's training return first was at a level.

    :param run: its result
    :param level: a return
    :return: seconds since its start, ``None`` if never
    """
    return next((seconds for _, value, seconds in run["curve"] if value >= level), None)


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
        times = [each for each in reached if each is not None]
        share = f"{np.median(times) / whole:.2f}" if len(times) == len(reached) else ""
        shown = ", ".join("never" if each is None else f"{each:.0f}" for each in reached)
        rows.append([env, number(level), f"{whole:.0f}", shown, share])
    return table(("task", f"{PEER}'s final training return", "its seconds", f"seconds of {OURS} to reach it", "ratio"), rows)


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
    "seed (sb3-contrib's in 5 environments, seeded from there on). Every run that was started counts; its seed is none that "
    "settings were tuned with."
)


def main() -> None:
    """Write the report."""
    tuning, ours, others = read("tuning"), read("mujoco", "rl_zoo"), read("sb3_contrib", "baselines")
    study, side_by_side = Study(ours + others), Study(read("wall_clock"))
    compared = study.envs(OURS, PEER)
    effort = f"{PROTOCOL} Tuning: {spent(tuning)}, with other seeds; reported here: {spent(ours)}."
    timed = side_by_side.envs(OURS, PEER)
    sections = {
        "Against what others have published, 1M steps": against(study, MARKS),
        "Against RL Zoo's runs of sb3-contrib's TRPO": rl_zoo_table(study),
        "All tasks together, returns divided by sb3-contrib's mean return": aggregate(study, compared),
        "Final returns": summaries(study, study.envs(OURS)),
        "Wall-clock time, runs made in turn on one machine": wall_clock(side_by_side, timed),
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
    parts = [f"## {title}\n\n{effort}\n\n{body}\n" for title, body in sections.items()]
    parts += [f"## {title}\n\n![{title}]({file})\n" for title, file in pictures.items()]
    (FOLDER / "report.md").write_text("# Learning results, by `python benchmarks/report.py`\n\n" + "\n".join(parts))
    print(FOLDER / "report.md")


if __name__ == "__main__":
    main()
