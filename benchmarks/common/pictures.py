"""
One style for all pictures.

Pictures are transparent, and text and axes are of a gray with the same contrast to white and to nearly black pages. Methods
have the colors of Okabe and Ito, which can be told apart with every kind of color vision, and each has its own line style.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

GRAY = "#7a7a7a"
"""Contrast 4.3 to white and to the dark background of the documentation."""
BLUE, VERMILION, GREEN, PURPLE, ORANGE = "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00"
COLORS = {"sb3_trpo": BLUE, "sb3-contrib": VERMILION, "PPO": GREEN, "A2C": PURPLE, "DDPG": ORANGE}
LINES: dict[str, Any] = {"sb3_trpo": "-", "sb3-contrib": "--", "PPO": "-.", "A2C": ":", "DDPG": (0, (5, 1, 1, 1, 1, 1))}
COLORS |= {"Gaussian": BLUE, "Beta": VERMILION, "Beta, cg_damping 0.01": GREEN}
LINES |= {"Gaussian": "-", "Beta": "--", "Beta, cg_damping 0.01": "-."}
STYLE = {
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "legend.frameon": False,
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), GRAY),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": GRAY,
    "grid.alpha": 0.25,
    "lines.linewidth": 1.8,
    "svg.hashsalt": "sb3_trpo",  # the same picture has the same bytes
}


@contextmanager
def drawing(file: Path, width: float, height: float, dpi: float = 100.0) -> Iterator[Figure]:
    """
    Draw in the style of all pictures.

    :param file: the picture to save
    :param width: in inches
    :param height: in inches
    :param dpi: pixels per inch of a PNG
    :return: the figure, saved at the end
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure
        metadata = {"Date": None} if file.suffix == ".svg" else {"Software": None}
        figure.savefig(file, dpi=dpi, metadata=metadata)


def thousands(axes: Axes) -> None:
    """
    Label timesteps on the horizontal axis in thousands or millions.

    :param axes: the axes
    """
    axes.locator_params(axis="x", nbins=4)
    axes.xaxis.set_major_formatter(lambda x, _: f"{x / 1e6:g}M" if x >= 1e6 else f"{x / 1e3:g}k" if x else "0")
