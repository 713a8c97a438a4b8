"""Pictures of speed and of the trust region, and the headline of the README, for ``report.py``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from benchmarks.common.pictures import BLUE, COLORS, GRAY, GREEN, LINES, ORANGE, VERMILION, drawing, thousands
from benchmarks.hybrid.tables import by_way
from benchmarks.learning.pictures import draw_panel
from benchmarks.learning.study import OURS, PEER, Study
from benchmarks.speed.targets import TARGETS

HEADLINE = ("HalfCheetah-v5", "Hopper-v5", "Walker2d-v5", "Ant-v5", "Swimmer-v5")
"""The tasks on which our runs, sb3-contrib's and PPO's are stored."""
TITLES = {OURS: OURS, PEER: "sb3-contrib's TRPO", "PPO": "SB3's PPO"}
PACKAGES = {"sb3_trpo": OURS, "sb3_contrib": PEER}


def draw_speed(learn: Mapping[str, Any], file: Path) -> None:
    """
    Draw the ratios of ``learn()`` as bars, with their spread and the targets.

    :param learn: results by case, from ``speed.json``
    :param file: the picture to save
    """
    names = [TARGETS[name].label for name in learn][::-1]
    spreads = [result["learn"] for result in learn.values()][::-1]
    medians = [spread["median"] for spread in spreads]
    errors = [[each["median"] - each["min"] for each in spreads], [each["max"] - each["median"] for each in spreads]]
    with drawing(file, 8.0, 1.2 + 0.3 * len(names)) as figure:
        axes = figure.subplots()
        bars = {"color": COLORS[OURS], "alpha": 0.8, "ecolor": GRAY, "capsize": 3, "label": "median, least to largest"}
        axes.barh(names, medians, xerr=errors, **bars)
        axes.plot([TARGETS[name].learn for name in learn][::-1], names, "D", color=ORANGE, mec=GRAY, label="target")
        axes.axvline(1.0, color=GRAY, lw=1)
        axes.set_xlabel("speed of learn(): times sb3-contrib's TRPO, one thread")
        axes.grid(visible=False, axis="y")
        figure.legend(loc="outside upper right", ncols=2)


def draw_trust_region(results: list[dict[str, Any]], file: Path) -> None:
    """
    Draw the KL of each update, in a panel for each action space.

    :param results: those of ``trust_region.json``
    :param file: the picture to save
    """
    spaces = list(dict.fromkeys(each["actions"] for each in results))
    with drawing(file, 8.0, 4.8) as figure:
        for panel, actions in zip(figure.subplots(2, 2, sharex=True).flat, spaces, strict=True):
            for each in (each for each in results if each["actions"] == actions):
                method = PACKAGES[each["package"]]
                panel.plot(range(1, len(each["kls"]) + 1), each["kls"], color=COLORS[method], ls=LINES[method], label=method)
            panel.axhline(each["target_kl"], color=GRAY, lw=1.5, label="target_kl")
            panel.set(title=actions, ylabel="KL(old || new), nats", ylim=(0.0, None))
        for panel in figure.axes[2:]:
            panel.set_xlabel("update")
        figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside upper right", ncols=3)


def draw_hybrid(raw: Mapping[str, Any], file: Path) -> None:
    """
    Draw the returns of the ways to train on hybrid actions: the mean over seeds, between the least and the largest.

    :param raw: contents of ``hybrid.json``
    :param file: the picture to save
    """
    styles = zip((ORANGE, GREEN, BLUE, VERMILION), (":", "-.", "-", "--"), strict=True)
    with drawing(file, 8.0, 3.6) as figure:
        axes = figure.subplots()
        for (way, runs), (color, line) in zip(by_way(raw["results"]).items(), styles, strict=True):
            curves = np.array([run["curve"] for run in runs])
            steps = raw["steps_per_update"] * np.arange(1, curves.shape[1] + 1)
            axes.plot(steps, curves.mean(0), color=color, ls=line, label=way)
            axes.fill_between(steps, curves.min(0), curves.max(0), color=color, alpha=0.15, lw=0)
        axes.set(xlabel="timesteps", ylabel="return during training", ylim=(0.0, 1.0))
        thousands(axes)
        figure.legend(loc="outside upper center", ncols=4)


def draw_headline(study: Study, learn: Mapping[str, Any], file: Path) -> None:
    """
    Draw learning curves, and the time of ``learn()``, beside those of sb3-contrib's TRPO and of PPO.

    :param study: the results of learning runs
    :param learn: results of ``learn()`` by case, from ``speed.json``
    :param file: the picture to save
    """
    with drawing(file, 10.0, 4.4, dpi=120.0) as figure:
        *panels, last = figure.subplots(2, 3).flat
        for env, panel in zip(HEADLINE, panels, strict=True):
            draw_panel(panel, study, env, (OURS, PEER, "PPO"))
            panel.set(xlabel="", ylabel="")
        _draw_times(last, learn)
        handles, labels = panels[0].get_legend_handles_labels()
        methods = [label.split(" (")[0] for label in labels]
        names = [f"{TITLES[method]}, {_counts(panels, method)} runs" for method in methods]
        figure.legend(handles, names, loc="outside upper center", ncols=3, fontsize="large")
        figure.supylabel("return during training", color=GRAY, fontsize="medium")


def _counts(panels: Iterable[Axes], method: str) -> str:
    """Read from the labels how many runs of a method the panels have, such as ``5 or 6``."""
    labels = (label for panel in panels for label in panel.get_legend_handles_labels()[1])
    return " or ".join(sorted({label.split(" (")[1][:-1] for label in labels if label.startswith(f"{method} (")}))


def _draw_times(panel: Axes, learn: Mapping[str, Any]) -> None:
    """Draw the times of ``learn()`` as multiples of ours, where PPO's was measured too."""
    tasks = [name for name, result in learn.items() if "learn_of_ppo" in result]
    ratios = {
        OURS: [1.0] * len(tasks),
        PEER: [learn[task]["learn"]["median"] for task in tasks],
        "PPO": [learn[task]["learn_of_ppo"]["median"] for task in tasks],
    }
    for index, (method, values) in enumerate(ratios.items()):
        places = np.arange(len(tasks)) + 0.27 * (index - 1)
        panel.barh(places, values, height=0.25, color=COLORS[method], alpha=0.8)
    panel.set(yticks=range(len(tasks)), yticklabels=tasks, title="time of learn(), sb3_trpo = 1")
    panel.grid(visible=False, axis="y")
    panel.invert_yaxis()
