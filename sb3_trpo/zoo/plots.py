"""Pictures of a training run: its learning curve, and a dashboard of its log; needs the extra ``[plots]``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from stable_baselines3.common.monitor import LoadMonitorResultsError, load_results

from sb3_trpo.extras import needs

with needs("Pictures need", "plots"):
    import pandas
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from stable_baselines3.common.results_plotter import ts2xy

BLUE, VERMILION, GREEN, GRAY = "#0072B2", "#D55E00", "#009E73", "#777777"
"""Colors that people with any kind of color vision can tell apart (Okabe and Ito 2008)."""
WINDOW = 20
"""Episodes in the moving average: enough to see a trend through the noise, few enough to show a run of 200 episodes."""

LEAST_SHOWN = -0.2
"""Explained variance below which a point is marked instead of drawn: an untrained critic's would hide all others."""
NEEDED = (
    "train/kl_divergence_loss",
    "train/target_kl",
    "train/entropy",
    "train/explained_variance",
    "train/n_updates",
    "time/total_timesteps",
    "time/collect_seconds",
    "time/policy_step_seconds",
    "time/critic_seconds",
)
"""Columns of a log that a dashboard cannot do without."""


class NothingLoggedError(ValueError):
    """A run has logged nothing that could be drawn."""


def learning_curve(run_folder: str | Path, title: str) -> Path:
    """
    Plot returns against steps: training episodes from Monitor's files, and evaluations from ``evaluations.npz`` if it exists.

    :param run_folder: folder to which RL Zoo, or ``Monitor`` and ``EvalCallback``, have written
    :param title: title of the picture
    :return: the PNG file, ``learning_curve.png`` in the folder
    :raises NothingLoggedError: if the folder has no Monitor files
    """
    folder = Path(run_folder)
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    _plot_returns(axes, folder)
    axes.set(xlabel="environment steps", title=title)
    picture = folder / "learning_curve.png"
    figure.savefig(picture, dpi=120)
    return picture


def dashboard(run_folder: str | Path, title: str) -> Path:
    """
    Plot what a run has logged: returns, KL divergence, exploration, critic, outcomes of the steps, and where the time went.

    :param run_folder: folder with Monitor's files and ``progress.csv``, SB3's log in CSV format
    :param title: title of the picture
    :return: the PNG file, ``dashboard.png`` in the folder
    :raises NothingLoggedError: if there is no ``progress.csv``, or no update in it
    """
    folder = Path(run_folder)
    log = _logged_updates(folder / "progress.csv")
    steps = log["time/total_timesteps"].to_numpy()
    figure = Figure(figsize=(13, 7), layout="constrained")
    panels = figure.subplots(2, 3).flatten()
    _plot_returns(panels[0], folder)
    for axes, plot in zip(panels[1:], PANELS.values(), strict=True):
        plot(axes, steps, log)
    for axes, name in zip(panels, ("return", *PANELS), strict=True):
        axes.grid(visible=True, alpha=0.3)
        axes.set(title=name, xlabel="environment steps")
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize="small")
    figure.suptitle(title)
    picture = folder / "dashboard.png"
    figure.savefig(picture, dpi=110)
    return picture


def _logged_updates(file: Path) -> pandas.DataFrame:
    if not file.is_file():
        raise NothingLoggedError("the run has no progress.csv, which the script train writes since version 0.2")
    try:
        log = pandas.read_csv(file)
    except ValueError as error:  # empty, cut off, or being written at this moment
        raise NothingLoggedError(f"{file} cannot be read: {error}") from error
    if not {*NEEDED} <= {*log}:
        raise NothingLoggedError("its log has no update of TRPO, or only the first, which is written after the next rollout")
    times = [name for name in log if name.startswith("time/")]
    log[times] = log[times].ffill()  # evaluations write rows of their own, between those of a rollout and of its update
    return log.dropna(subset=["train/n_updates"])  # the first row comes before any update


def _plot_kl(axes: Axes, steps: np.ndarray, log: pandas.DataFrame) -> None:
    axes.plot(steps, log["train/kl_divergence_loss"], ".", markersize=3, color=BLUE, label="KL of the step")
    axes.plot(steps, log["train/target_kl"], color=VERMILION, label="target_kl")
    axes.set(ylabel="nats", ylim=(0.0, None))


def _plot_exploration(axes: Axes, steps: np.ndarray, log: pandas.DataFrame) -> None:
    axes.plot(steps, log["train/entropy"], color=BLUE, label="entropy, nats")
    if "train/std" in log:
        axes.plot(steps, log["train/std"], color=VERMILION, label="standard deviation")


def _plot_critic(axes: Axes, steps: np.ndarray, log: pandas.DataFrame) -> None:
    explained = log["train/explained_variance"].to_numpy()
    axes.plot(steps, explained, color=BLUE)
    below = explained < LEAST_SHOWN
    if below.any():
        axes.plot(steps[below], np.full(below.sum(), LEAST_SHOWN), "v", color=VERMILION, label=f"below {LEAST_SHOWN}")
    axes.axhline(1.0, color=GRAY, linewidth=0.8)
    axes.set(ylim=(LEAST_SHOWN - 0.05, 1.05))


def _plot_outcomes(axes: Axes, steps: np.ndarray, log: pandas.DataFrame) -> None:
    for name in sorted(name for name in log if name.startswith("outcomes/") and not name.endswith("critic_fitted")):
        axes.plot(steps, log[name].ffill().fillna(0), label=name.removeprefix("outcomes/").replace("_", " "))
    axes.set(ylabel="updates so far")


def _plot_times(axes: Axes, steps: np.ndarray, log: pandas.DataFrame) -> None:
    parts = {"collecting": "collect", "policy step": "policy_step", "critic": "critic"}
    seconds = [log[f"time/{part}_seconds"].fillna(0.0) for part in parts.values()]
    axes.stackplot(steps, seconds, labels=[*parts], colors=(BLUE, VERMILION, GREEN), alpha=0.8)
    axes.set(ylabel="seconds per iteration")


PANELS: Mapping[str, Callable[[Axes, np.ndarray, pandas.DataFrame], None]] = {
    "KL divergence and its bound": _plot_kl,
    "exploration": _plot_exploration,
    "explained variance of the returns": _plot_critic,
    "outcomes of the updates": _plot_outcomes,
    "where the time goes": _plot_times,
}
"""Panels of the dashboard beside the returns, by title."""


def _plot_returns(axes: Axes, folder: Path) -> None:
    try:
        episodes = load_results(str(folder))
    except LoadMonitorResultsError as error:
        raise NothingLoggedError("the run has no Monitor files (*.monitor.csv)") from error
    steps, returns = ts2xy(episodes, "timesteps")
    axes.plot(steps, returns, ".", markersize=3, alpha=0.3, color=BLUE, label="training episode")
    if len(returns) >= WINDOW:
        average = np.convolve(returns, np.full(WINDOW, 1 / WINDOW), mode="valid")
        axes.plot(steps[WINDOW - 1 :], average, color=BLUE, label=f"mean of {WINDOW} episodes")
    _plot_evaluations(axes, folder / "evaluations.npz")
    axes.grid(visible=True, alpha=0.3)
    axes.set(ylabel="return")
    axes.legend()


def _plot_evaluations(axes: Axes, file: Path) -> None:
    if file.is_file():
        evaluations = np.load(file)
        results = evaluations["results"]
        axes.errorbar(
            evaluations["timesteps"],
            results.mean(1),
            results.std(1),
            fmt="o-",
            color=VERMILION,
            capsize=3,
            label="evaluation, mean and std",
        )
