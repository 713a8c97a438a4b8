"""Signals that ask a run to stop: it continues to the next iteration, saves and ends."""

from __future__ import annotations

import os
import signal
import threading
import warnings
from collections.abc import Iterable
from types import FrameType, TracebackType

from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnv

from sb3_trpo.checkpoint.worker_rpc import SIGNALS, Handler, call_all, ignore_signals, install_again, release_workers
from sb3_trpo.parallel.vec_env_layers import layers_of


class StopRequest:
    """
    Listens for signals while it is entered, and restores the previous handlers afterwards.

    It also reacts to signals that were ignored before, as in a shell script's background jobs: the sender wants the run to end
    properly. A second SIGINT has its usual effect at once, since a user who presses Ctrl-C twice means it. If SIGINT was
    ignored before, the second one raises ``KeyboardInterrupt``.

    :param vec_envs: vectorized environments; signals must not end their workers
    """

    def __init__(self, vec_envs: Iterable[VecEnv]) -> None:
        bases = {id(layer): layer for vec_env in vec_envs for layer in layers_of(vec_env)}
        self._bases = [base for base in bases.values() if isinstance(base, SubprocVecEnv) and not base.closed]
        self._handlers: dict[int, Handler] = {}
        self._owner = os.getpid()
        self.received: str | None = None
        """Name of the first signal."""

    def __enter__(self) -> StopRequest:
        """Listen, if this is the main thread; Python does not allow it in any other."""
        if threading.current_thread() is not threading.main_thread():
            warnings.warn(
                "ResumableCheckpoint(on_signal=True) can listen for signals in the main thread only; learn() runs in another.",
                UserWarning,
                stacklevel=2,
            )
            return self
        for base in self._bases:
            call_all(base, ignore_signals)
        try:
            for number in SIGNALS:
                self._handlers[number] = signal.getsignal(number)  # first, for the next line may receive one
                signal.signal(number, self._handle)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Stop listening."""
        for number, handler in self._handlers.items():
            install_again(number, handler)
        for base in self._bases if self._handlers else ():
            release_workers(base)
        self._handlers = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        previous = self._handlers[number]
        if os.getpid() != self._owner:  # a child that was forked meanwhile has nothing to save
            _hand_on(number, previous)
        elif self.received is not None and number == signal.SIGINT:
            _hand_on(number, signal.default_int_handler if previous == signal.SIG_IGN else previous)
        self.received = self.received or signal.Signals(number).name


def _hand_on(number: int, handler: Handler) -> None:
    """Pass this signal and all later ones to another handler."""
    install_again(number, handler)
    os.kill(os.getpid(), number)
