"""Processes forked from a server that has imported everything: real ones, without the seconds that imports take."""

from __future__ import annotations

import multiprocessing as mp
import os
import signal
import tempfile
from collections.abc import Callable
from multiprocessing.reduction import DupFd
from typing import Any

SERVER = mp.get_context("forkserver")
SERVER.set_forkserver_preload(
    [
        "sb3_trpo.recurrent.trpo",
        "sb3_trpo.checkpoint",
        "torch._dynamo",
        "torch.utils.tensorboard",
        "mujoco",
        "pytest",
        "hypothesis",
    ]
)


def _run(out: Any, errors: Any, main: Callable[..., None], args: tuple[Any, ...]) -> None:
    os.setsid()
    os.dup2(out.detach(), 1)
    os.dup2(errors.detach(), 2)
    main(*args)


class Script:
    """
    A script's main function in a process of its own, to be handled like a ``subprocess.Popen``.

    :param main: a function of a module that can be imported
    :param args: what it is given
    """

    def __init__(self, main: Callable[..., None], *args: Any) -> None:
        reading, writing = os.pipe()
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  # read when the process has ended
        self._process = SERVER.Process(target=_run, args=(DupFd(writing), DupFd(self._errors.fileno()), main, args))
        self._process.start()
        os.close(writing)
        self.stdout = os.fdopen(reading)

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        os.kill(self._process.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait for the end; returns what is left of what it printed, and of its errors."""
        printed = self.stdout.read()
        self._process.join(timeout)
        self.stdout.close()
        with self._errors:
            self._errors.seek(0)
            return printed, self._errors.read()
