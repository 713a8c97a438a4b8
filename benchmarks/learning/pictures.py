"""Plots of learning runs, for ``report.py``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from benchmarks.learning.study import OURS, PEER, Study, curves, intervals, iqm

COLOURS = {OURS: "C0", PEER: "C1", "PPO": "C2", "A2C": "C3", "DDPG": "C4"}


def draw_curves(study: Study, envs: list[str], file: Path, against_seconds: bool = False) -> None:
    """
    Plot training returns of all methods: the IQM over runs and its 95 % interval, in a panel for each task.

    :param study: the results
    :param envs: the tasks
    :param file: the picture to save
    :param against_seconds: whether the x axis is the mean wall-clock time instead of timesteps
    """
    columns = min(3, len(envs))
    lines = -(-len(envs) // columns)
    with mpl.rc_context({"axes.grid": True, "grid.alpha": 0.3}):
        figure = Figure(figsize=(4.5 * columns, 3.2 * lines), layout="constrained")
        panels = figure.subplots(lines, columns, squeeze=False).flat
        for env, panel in zip(envs, panels, strict=False):  # in this order zip() takes no panel too many
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


def draw_improvement(probabilities: Mapping[str, np.ndarray], file: Path) -> None:
    """
    Plot the probability of improvement over sb3-contrib.

    :param probabilities: by task, with their intervals
    :param file: the picture to save
    """
    envs = list(probabilities)
    with mpl.rc_context({"axes.grid": True, "grid.alpha": 0.3}):
        figure = Figure(figsize=(6, 0.5 + 0.45 * len(envs)), layout="constrained")
        axes = figure.subplots()
        for row, env in enumerate(reversed(envs)):
            point, low, high = probabilities[env]
            axes.plot([low, high], [row, row], color="C0", lw=6, alpha=0.4, solid_capstyle="butt")
            axes.plot(point, row, "o", color="C0")
        axes.axvline(0.5, color="black", lw=1)
        axes.set(
            yticks=range(len(envs)), yticklabels=envs[::-1], xlim=(-0.02, 1.02), xlabel=f"P(a run of {OURS} > one of {PEER})"
        )
        figure.savefig(file, dpi=110)
