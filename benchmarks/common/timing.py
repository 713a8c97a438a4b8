"""Alternating measurements: on a shared machine absolute times drift, their ratios do not."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

Job = Callable[[], object]
Clock = Callable[[], float]


def seconds(job: Job, clock: Clock = time.perf_counter) -> float:
    """
    Time one run.

    :param job: what to run
    :param clock: the time in seconds; ``time.process_time`` for that of the processor
    :return: time in seconds
    """
    start = clock()
    job()
    return clock() - start


def alternate(jobs: Mapping[str, Job], rounds: int, clock: Clock = time.perf_counter) -> dict[str, list[float]]:
    """
    Time jobs in turn, after one round to warm up.

    :param jobs: by name
    :param rounds: number of timings of each
    :param clock: the time in seconds
    :return: seconds by name; the i-th of each are from the same round
    """
    for job in jobs.values():
        job()
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(rounds):
        for name, job in jobs.items():
            times[name].append(seconds(job, clock))
    return times


def ratio(slower: list[float], faster: list[float]) -> dict[str, float]:
    """
    Compare two jobs round by round.

    :param slower: seconds of the reference
    :param faster: seconds of ours
    :return: median, least and largest of the ratios
    """
    ratios = np.array(slower) / np.array(faster)
    return {"median": float(np.median(ratios)), "min": float(ratios.min()), "max": float(ratios.max())}


def show(spread: Mapping[str, float]) -> str:
    """
    Format a ratio with its spread.

    :param spread: from :func:`ratio`
    :return: such as ``4.2 (3.9 to 4.5)``
    """
    return f"{spread['median']:.2f} ({spread['min']:.2f} to {spread['max']:.2f})"


def rounded(times: Mapping[str, list[float]]) -> dict[str, Any]:
    """
    Round raw times for JSON.

    :param times: seconds by name
    :return: the same with six decimals
    """
    return {name: [round(value, 6) for value in values] for name, values in times.items()}
