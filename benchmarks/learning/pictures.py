"""Pictures of learning runs, for ``report.py``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from benchmarks.common.pictures import BLUE, COLORS, GRAY, LINES, drawing, thousands
from benchmarks.learning.study import OURS, PEER, Study, curves, intervals, iqm, profile


def draw_curves(study: Study, envs: list[str], file: Path, against_seconds: bool = False) -> None:
    """
    Draw training returns of all methods: the IQM over runs and its 95 % interval, in a panel for each task.

    :param study: the results
    :param envs: the tasks
    :param file: the picture to save
    :param against_seconds: whether the horizontal axis is the mean wall-clock time instead of timesteps
    """
    columns = min(3, len(envs))
    lines = -(-len(envs) // columns)
    with drawing(file, 3.6 * columns, 2.7 * lines) as figure:
        panels = figure.subplots(lines, columns, squeeze=False).flat
        for env, panel in zip(envs, panels, strict=False):  # in this order zip() takes no panel too many
            draw_panel(panel, study, env, study.methods(env), against_seconds)
            panel.legend(fontsize="x-small", labelcolor=GRAY)
        for panel in panels:
            panel.remove()


def draw_panel(panel: Axes, study: Study, env: str, methods: Iterable[str], against_seconds: bool = False) -> None:
    """
    Draw the learning curves on one task.

    :param panel: where to draw
    :param study: the results
    :param env: the task
    :param methods: the methods, of which those without a curve are left out
    :param against_seconds: whether the horizontal axis is the mean wall-clock time instead of timesteps
    """
    for method in methods:
        runs = curves(study, env, method)
        abscissa = runs[:, :, 2 if against_seconds else 0].mean(0) if runs.size else np.array([np.nan])
        if not np.isnan(abscissa).any():
            middle, low, high = intervals(iqm, runs[:, None, :, 1])
            label = f"{method} ({len(runs)})"
            panel.plot(abscissa, middle, color=COLORS[method], ls=LINES[method], label=label)
            panel.fill_between(abscissa, low, high, color=COLORS[method], alpha=0.2, lw=0)
    panel.set(title=env, xlabel="seconds" if against_seconds else "timesteps", ylabel="training return")
    if not against_seconds:
        thousands(panel)


def draw_profile(scores: Mapping[str, np.ndarray], file: Path) -> None:
    """
    Draw performance profiles: the share of runs above each normalized return, with its 95 % interval.

    :param scores: (runs, tasks) by method
    :param file: the picture to save
    """
    highest = max((float(each.max()) for each in scores.values()), default=1.0)
    levels = np.linspace(0.0, highest, 101)
    with drawing(file, 6.0, 3.2) as figure:
        axes = figure.subplots()
        for method, each in scores.items():
            share, low, high = profile(each, levels)
            axes.plot(levels, share, color=COLORS[method], ls=LINES[method], label=method)
            axes.fill_between(levels, low, high, color=COLORS[method], alpha=0.2, lw=0)
        axes.set(xlabel="normalized return", ylabel="share of runs above it", ylim=(0.0, 1.02))
        if scores:
            axes.legend(labelcolor=GRAY)


def draw_improvement(probabilities: Mapping[str, np.ndarray], file: Path, other: str = PEER) -> None:
    """
    Draw the probability of improvement over another method.

    :param probabilities: by task, with their intervals
    :param file: the picture to save
    :param other: the other method
    """
    envs = list(probabilities)
    with drawing(file, 6.0, 0.6 + 0.4 * len(envs)) as figure:
        axes = figure.subplots()
        for row, env in enumerate(reversed(envs)):
            point, low, high = probabilities[env]
            axes.plot([low, high], [row, row], color=BLUE, lw=6, alpha=0.4, solid_capstyle="butt")
            axes.plot(point, row, "o", color=BLUE)
        axes.axvline(0.5, color=GRAY, lw=1)
        axes.set(
            yticks=range(len(envs)),
            yticklabels=envs[::-1],
            xlim=(-0.02, 1.02),
            ylim=(-0.5, len(envs) - 0.5),
            xlabel=f"P(a run of {OURS} > one of {other})",
        )
