"""The table of ``results/memory.json``."""

from __future__ import annotations

from typing import Any

from benchmarks.common.tables import table

PACKAGES = {"sb3_trpo": "sb3_trpo, MiB", "sb3_contrib": "sb3-contrib, MiB", "sb3_trpo, LSTM": "sb3_trpo with an LSTM, MiB"}
"""Titles of the columns."""


def trend(peaks: dict[int, float], n_frames: int) -> float:
    """
    Extend the line through the two largest measurements.

    :param peaks: MiB by number of frames, at least two
    :param n_frames: a larger number of frames
    :return: GiB
    """
    (few, low), (many, high) = sorted(peaks.items())[-2:]
    return (high + (high - low) / (many - few) * (n_frames - many)) / 1024


def tables(raw: dict[str, Any]) -> dict[str, str]:
    """
    Tabulate the peaks of an update above the filled rollout buffer.

    :param raw: contents of ``memory.json``
    :return: Markdown by name
    """
    peaks: dict[str, dict[int, float]] = {}
    for each in raw["results"]:
        peaks.setdefault(each["package"], {})[each["frames"]] = each["peak_above_rollout_mib"]

    def cell(package: str, n_frames: int) -> str:
        if n_frames in peaks[package]:
            return f"{peaks[package][n_frames]:,.0f}"
        return f"not run: about {trend(peaks[package], n_frames):.0f} GiB by the trend"

    measured = [package for package in PACKAGES if package in peaks]
    frames = sorted({n_frames for of in peaks.values() for n_frames in of})
    rows = ([f"{n_frames:,}", *(cell(package, n_frames) for package in measured)] for n_frames in frames)
    return {"memory": table(("frames", *(PACKAGES[package] for package in measured)), rows)}
