"""
Where gloo's all-reduce overtakes the mesh of connections: both, for several numbers of ranks and lengths.

A machine with fewer cores than ranks makes wall times too long, and more so for the method that sends more messages. CPU times
depend less on the number of cores: that of a rank is about what it would be busy for on cores of its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch as th
import torch.distributed as dist

from benchmarks.common.tables import table
from sb3_trpo.parallel.distributed import GlooCommunicator

LENGTHS = (1, 10, 100, 1_000, 10_000, 30_000, 100_000, 300_000, 1_000_000)
"""Lengths of the float32 vectors that are reduced."""
WORLDS = (2, 3, 4, 8)
"""Numbers of ranks."""
SHOWN = (10, 1_000, 10_000, 30_000, 100_000, 1_000_000)
"""Lengths in the table; a single number is a special case of gloo's."""
ROUNDS = 25
METHODS = ("mesh", "all-reduce")


def measure_collectives(communicator: GlooCommunicator) -> dict[str, Any]:
    """
    Time both ways of reducing, in turn, with all lengths in each round.

    :param communicator: connects the ranks
    :return: for each length and method, seconds of each round: wall time and CPU time of the first rank, and the CPU time of
        all ranks together
    """
    found = {str(length): {method: dict[str, list[float]](wall=[], cpu=[], cpu_of_all=[]) for method in METHODS}
             for length in LENGTHS}  # fmt: skip
    for _ in range(ROUNDS):
        for length in LENGTHS:
            for method, seconds in _measure(communicator, th.zeros(length)).items():
                for measure, value in seconds.items():
                    found[str(length)][method][measure].append(value)
    return found


def _measure(communicator: GlooCommunicator, vector: th.Tensor) -> dict[str, dict[str, float]]:
    mesh = communicator._mesh
    assert mesh is not None, "the ranks of one machine reach each other"
    jobs: dict[str, Callable[[], object]] = {
        "mesh": lambda: mesh.sum(vector),
        "all-reduce": lambda: dist.all_reduce(vector),
    }
    repeats = max(2, min(30, 1_000_000 // len(vector)) // (communicator.size - 1))
    found = {}
    for name, job in jobs.items():
        wall, cpu = (each / repeats for each in _timed(job, repeats))
        cpu_of_all = float(communicator.sum(th.tensor(cpu, dtype=th.float64)))
        found[name] = {"wall": wall, "cpu": cpu, "cpu_of_all": cpu_of_all}
    return found


def _timed(job: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Return wall time and CPU time of this rank, threads of gloo's included."""
    dist.barrier()
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(repeats):
        job()
    return time.perf_counter() - wall, time.process_time() - cpu


def collectives_table(raw: dict[str, Any]) -> str:
    """
    Tabulate medians of both methods.

    :param raw: contents of ``scaling.json``
    :return: Markdown
    """
    rows = []
    for n_ranks, of in raw["collectives"]["ranks"].items():
        for measure, label in (("wall", "wall"), ("cpu", "CPU of the first rank"), ("cpu_of_all", "CPU of all ranks")):
            cells = (_pair(of[str(length)], measure) for length in SHOWN)
            rows.append([n_ranks if measure == "wall" else "", label, *cells])
    return table(("ranks", "ms", *(f"{length:,}" for length in SHOWN)), rows)


def _pair(of: dict[str, dict[str, list[float]]], measure: str) -> str:
    return " / ".join(f"{1e3 * float(np.median(of[method][measure])):.2f}" for method in METHODS)
