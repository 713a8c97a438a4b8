"""Signals that ask a run to stop: it goes on to the next rollout boundary, saves and ends."""

from __future__ import annotations

import os
import signal
import threading
import warnings
from collections.abc import Callable, Iterable
from types import FrameType, TracebackType
from typing import Any

from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnv

from sb3_trpo.checkpoint.simulators import UNASKED, ask, layers_of

NAMES = ("SIGTERM", "SIGINT", "SIGUSR1")
"""Those of batch systems and keyboards; SLURM sends SIGUSR1 where asked by ``--signal``. Not every system has all."""
SIGNALS = tuple(getattr(signal, name) for name in NAMES if hasattr(signal, name))
Handler = Callable[[int, FrameType | None], Any] | int | None

_put_aside: dict[int, Handler] = {}
"""In a worker process: the handlers in whose place signals are ignored."""


def ignore_signals(env: Any) -> None:
    """
    Ignore the signals in a worker: a terminal sends them to all processes, and the run needs its workers to end well.

    :param env: of the worker
    """
    for number in SIGNALS:
        _put_aside.setdefault(number, signal.signal(number, signal.SIG_IGN))


def heed_signals(env: Any) -> None:
    """
    Put a worker's handlers back.

    :param env: of the worker
    """
    for number, handler in _put_aside.items():
        signal.signal(number, signal.SIG_DFL if handler is None else handler)
    _put_aside.clear()


class StopRequest:
    """
    Listens for signals while it is entered; the handlers from before are put back afterwards.

    A second SIGINT has its usual effect at once: whoever presses Ctrl-C twice means it.

    :param venvs: whose workers must not die of the signals
    """

    def __init__(self, venvs: Iterable[VecEnv]) -> None:
        bases = [layer for venv in venvs for layer in layers_of(venv) if isinstance(layer, SubprocVecEnv)]
        self._workers = [(base, index) for base in bases for index in range(base.num_envs)]
        self._handlers: dict[int, Handler] = {}
        self.received: str | None = None
        """Name of the first signal."""

    def __enter__(self) -> StopRequest:
        """Listen, in the main thread; Python allows it in no other."""
        if threading.current_thread() is not threading.main_thread():
            warnings.warn(
                "ResumableCheckpoint(on_signal=True) can listen for signals in the main thread only; learn() runs in another.",
                UserWarning,
                stacklevel=2,
            )
            return self
        for number in SIGNALS:
            self._handlers[number] = signal.signal(number, self._handle)
        for base, index in self._workers:
            if ask(base, index, ignore_signals) == UNASKED:
                break
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Stop listening."""
        for number, handler in self._handlers.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        for base, index in self._workers if self._handlers else ():
            try:
                ask(base, index, heed_signals)
            except (OSError, EOFError):  # the worker is gone, and learn() is on its way out because of that
                continue
        self._handlers = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            previous = self._handlers[number]
            signal.signal(number, signal.SIG_DFL if previous is None else previous)
            os.kill(os.getpid(), number)
        self.received = self.received or signal.Signals(number).name
