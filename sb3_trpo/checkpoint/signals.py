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

from sb3_trpo.checkpoint.codecs.environments import ask
from sb3_trpo.parallel.vec_env_layers import layers_of

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
        _put_back(number, handler)
    _put_aside.clear()


def _put_back(number: int, handler: Handler) -> None:
    """Install a handler that was there before; one that was not installed from Python (``None``) is beyond reach."""
    if handler is None:
        handler = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL  # Python's own
    signal.signal(number, handler)


class StopRequest:
    """
    Listens for signals while it is entered; the handlers from before are put back afterwards.

    It hears them also where they were ignored before, as in a shell script's background jobs: whoever sends one wants the run
    to end well. A second SIGINT has its usual effect at once: whoever presses Ctrl-C twice means it. Where that would be none,
    because SIGINT was ignored, it raises ``KeyboardInterrupt``.

    :param venvs: whose workers must not die of the signals
    """

    def __init__(self, venvs: Iterable[VecEnv]) -> None:
        bases = {id(layer): layer for venv in venvs for layer in layers_of(venv) if isinstance(layer, SubprocVecEnv)}
        self._bases = [base for base in bases.values() if not base.closed]
        self._handlers: dict[int, Handler] = {}
        self._owner = os.getpid()
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
        for base in self._bases:  # a worker with a bare env cannot be asked
            for index in range(base.num_envs):
                ask(base, index, ignore_signals)
        for number in SIGNALS:
            self._handlers[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Stop listening."""
        for number, handler in self._handlers.items():
            _put_back(number, handler)
        for base in self._bases if self._handlers else ():
            _release(base)
        self._handlers = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        previous = self._handlers[number]
        if os.getpid() != self._owner:  # forked meanwhile, and not meant to go on
            _pass_on(number, previous)
        elif self.received is not None and number == signal.SIGINT:
            _pass_on(number, signal.default_int_handler if previous == signal.SIG_IGN else previous)
        self.received = self.received or signal.Signals(number).name


def _pass_on(number: int, handler: Handler) -> None:
    """Let another handler have the signal, this one and all that follow."""
    _put_back(number, handler)
    os.kill(os.getpid(), number)


def _release(base: SubprocVecEnv) -> None:
    """Let workers heed signals again; those that are in the midst of a step when a run breaks off are ended."""
    if base.waiting:
        for process in base.processes:
            process.kill()
            process.join()
        base.waiting, base.closed = False, True  # nothing is left for close() to wait for
        return
    for index in range(base.num_envs):
        try:
            ask(base, index, heed_signals)
        except (OSError, EOFError):  # it is gone, and learn() is on its way out because of that
            continue
