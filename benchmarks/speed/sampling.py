"""
Where the time of ``learn()`` goes, by samples of the stack.

A timer interrupts the process every two milliseconds, and each sample counts for the part of the code that it finds at work.
Nothing is wrapped or replaced, so all algorithms, policies and environments take the paths that they take without it, and a
breakdown does not depend on the names of functions.
"""

from __future__ import annotations

import re
import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

INTERVAL = 0.002
"""Seconds between samples."""
PACKAGES = re.compile(r"/(sb3_trpo|stable_baselines3|sb3_contrib)/")
COLLECTING = re.compile(r"collect")
"""The names of functions in these packages that collect a rollout begin so, such as SB3's ``collect_rollouts``."""
PARTS = {
    "env": re.compile(
        r"/common/vec_env/|/gymnasium/|/minigrid/|/collection/(stepping|normalizing|environment)|/speed/batched\.py$"
    ),
    "actor": re.compile(r"/collection/(acting|step_actor)|/sb3_trpo/(networks|distributions)/|/policies\.py$|/torch/"),
}
"""Parts of collecting by the files that work for them; the rest are the buffer, callbacks and the loop itself."""
REST = "buffer and callbacks"
OUTSIDE = "update"
"""Everything but collecting."""


def part_of(frame: FrameType | None) -> str:
    """
    Find what a process is doing.

    :param frame: the innermost frame of its stack
    :return: a key of ``PARTS``, ``REST`` or ``OUTSIDE``. The outermost call from the loop that collects decides: torch's
        functions count for the environment if that is what called them
    """
    files: list[str] = []
    inside: list[str] | None = None
    while frame is not None:
        code = frame.f_code
        if inside is None and COLLECTING.match(code.co_name) and PACKAGES.search(code.co_filename):
            inside = files.copy()
        files.append(code.co_filename)
        frame = frame.f_back
    if inside is None:
        return OUTSIDE
    return next((part for file in reversed(inside) for part, pattern in PARTS.items() if pattern.search(file)), REST)


@contextmanager
def sampled() -> Iterator[Counter[str]]:
    """Add up the seconds of each part, in the main thread of a process that uses no other such timer."""
    times: Counter[str] = Counter()
    last = time.perf_counter()

    def note(_signal: int, frame: FrameType | None) -> None:
        # Signals wait until a call of C code returns, and several of them become one: a sample counts as long as it took.
        nonlocal last
        last, before = time.perf_counter(), last
        times[part_of(frame)] += last - before  # type: ignore[assignment]  # a Counter holds any number

    handler = signal.signal(signal.SIGALRM, note)
    signal.setitimer(signal.ITIMER_REAL, INTERVAL, INTERVAL)
    try:
        yield times
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, handler)
