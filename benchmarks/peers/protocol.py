"""
What all packages are timed with, and how a script of one reports its time.

It needs nothing but Python: the packages live in environments of their own.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from importlib.metadata import version

TASK = "HalfCheetah-v5"
N_STEPS, MINIBATCH, PASSES, CG_STEPS, CG_DAMPING = 2048, 128, 10, 10, 0.1
"""Steps of a rollout, transitions of a minibatch, passes over the rollout, and conjugate gradient (Tianshou's are fixed)."""
TARGET_KL = 0.01
WIDTHS = (64, 64)
GAMMA, GAE_LAMBDA, LEARNING_RATE = 0.99, 0.95, 1e-3


def report(learn: Callable[[int], object], *packages: str) -> None:
    """
    Learn once to warm up, then for the number of steps on the command line, and print the time as JSON on the last line.

    :param learn: learns for a number of steps, a multiple of ``N_STEPS``, and goes on where it stopped
    :param packages: whose versions count; the first is the one that is timed
    """
    n_rollouts = int(sys.argv[1])
    learn(2 * N_STEPS)
    wall, cpu = time.perf_counter(), time.process_time()
    learn(n_rollouts * N_STEPS)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    versions = {package: version(package) for package in packages}
    times = {"steps": n_rollouts * N_STEPS, "cpu_seconds": round(cpu, 4), "wall_seconds": round(wall, 4)}
    print()
    print(json.dumps(times | {"versions": versions}))
