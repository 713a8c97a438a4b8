"""The learning curve of a training run; needs the extra ``[plots]``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from stable_baselines3.common.monitor import load_results

from sb3_trpo.extras import needs

with needs("Pictures need", "plots"):
    import pandas  # noqa: F401  # for load_results
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from stable_baselines3.common.results_plotter import ts2xy

WINDOW = 20
"""Episodes in the moving average: enough to see a trend through the noise, few enough to show a run of 200 episodes."""


def learning_curve(run_folder: str | Path, title: str) -> Path:
    """
    Plot returns against steps: training episodes from Monitor's files, and evaluations from ``evaluations.npz`` if it exists.

    :param run_folder: folder to which RL Zoo, or ``Monitor`` and ``EvalCallback``, have written
    :param title: title of the picture
    :return: the PNG file, ``learning_curve.png`` in the folder
    :raises LoadMonitorResultsError: if the folder has no Monitor files
    """
    folder = Path(run_folder)
    steps, returns = ts2xy(load_results(str(folder)), "timesteps")
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.grid(visible=True, alpha=0.3)
    axes.plot(steps, returns, ".", markersize=3, alpha=0.3, label="training episode")
    if len(returns) >= WINDOW:
        average = np.convolve(returns, np.full(WINDOW, 1 / WINDOW), mode="valid")
        axes.plot(steps[WINDOW - 1 :], average, label=f"mean of {WINDOW} episodes")
    _plot_evaluations(axes, folder / "evaluations.npz")
    axes.set(xlabel="environment steps", ylabel="return", title=title)
    axes.legend()
    picture = folder / "learning_curve.png"
    figure.savefig(picture, dpi=120)
    return picture


def _plot_evaluations(axes: Axes, file: Path) -> None:
    if file.is_file():
        evaluations = np.load(file)
        results = evaluations["results"]
        axes.errorbar(
            evaluations["timesteps"], results.mean(1), results.std(1), fmt="o-", capsize=3, label="evaluation, mean and std"
        )
