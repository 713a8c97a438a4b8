"""Calls in the worker processes of a ``SubprocVecEnv``, and the functions called there to handle signals."""

from __future__ import annotations

import signal
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any

from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv

from sb3_trpo.checkpoint.codecs.codec import MismatchError

ANSWER = "_answer_to_checkpoint"
"""Attribute under which an environment in a worker keeps the result of a call until it is fetched."""
CANNOT_BE_CALLED = (
    "is a bare env in a worker process; wrapped in SB3's Monitor, as make_vec_env does, its state could be saved"
)
"""Result of a call that the worker did not run."""
SIGNAL_NAMES = ("SIGTERM", "SIGINT", "SIGUSR1")
"""Those of batch systems and keyboards; SLURM sends SIGUSR1 if asked to by ``--signal``. Not every system has all."""
SIGNALS = tuple(getattr(signal, name) for name in SIGNAL_NAMES if hasattr(signal, name))
Handler = Callable[[int, FrameType | None], Any] | int | None


class _Call:
    """
    A call to make in a worker process.

    SB3's workers run no function that they are sent. But ``env_is_wrapped(cls)`` makes them check whether a layer of their
    environment is an instance of ``cls``; for an object sent in place of a class, Python lets that object decide, and so this
    one gets to see the environment.

    :param function: called with the environment
    :param arguments: further arguments
    """

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.function = function
        self.arguments = arguments

    def __instancecheck__(self, env: Any) -> bool:
        """Make the call, and leave the result with the environment."""
        try:
            vars(env)[ANSWER] = self.function(env, *self.arguments)
        except Exception as error:  # it would end the worker
            vars(env)[ANSWER] = MismatchError(f"{type(error).__name__}: {error}")
        return True


def call(vec_env: VecEnv, index: int, function: Callable[..., Any], *arguments: Any) -> Any:
    """
    Call a function with one of the environments, in this process or in a worker.

    :param vec_env: a ``DummyVecEnv`` or ``SubprocVecEnv``
    :param index: index of the environment
    :param function: a function that the worker can import
    :param arguments: further arguments
    :return: what the function returned; :data:`CANNOT_BE_CALLED` if the worker did not run it, because SB3
        checks wrappers only
    :raises MismatchError: if the function failed in a worker
    """
    if isinstance(vec_env, DummyVecEnv):
        return function(vec_env.envs[index], *arguments)
    request: Any = _Call(function, *arguments)
    (was_called,) = vec_env.env_is_wrapped(request, indices=index)
    (answer,) = vec_env.get_attr(ANSWER, indices=index) if was_called else (CANNOT_BE_CALLED,)
    if isinstance(answer, MismatchError):
        raise answer
    return answer


def call_all(vec_env: DummyVecEnv | SubprocVecEnv, function: Callable[..., Any], *arguments: Any) -> None:
    """
    Call a function with each environment, unless workers are closed or busy with a step.

    :param vec_env: the environments
    :param function: a function that workers can import
    :param arguments: further arguments
    """
    if isinstance(vec_env, DummyVecEnv) or not (vec_env.closed or vec_env.waiting):
        for index in range(vec_env.num_envs):
            call(vec_env, index, function, *arguments)


_previous_handlers: dict[int, Handler] = {}
"""In a worker process: the signal handlers from before :func:`ignore_signals`."""


def ignore_signals(env: Any) -> None:
    """
    Ignore signals in a worker: a terminal sends Ctrl-C to all processes, but the run needs its workers until it ends.

    :param env: the worker's environment
    """
    for number in SIGNALS:
        _previous_handlers.setdefault(number, signal.signal(number, signal.SIG_IGN))


def stop_ignoring_signals(env: Any) -> None:
    """
    Restore a worker's previous signal handlers.

    :param env: the worker's environment
    """
    for number, handler in _previous_handlers.items():
        install_again(number, handler)
    _previous_handlers.clear()


def install_again(number: int, handler: Handler) -> None:
    """
    Restore a previous signal handler.

    :param number: number of the signal
    :param handler: what ``signal.signal`` returned; ``None`` for one that was not installed from Python, which Python
        cannot install
    """
    if handler is None:
        handler = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL  # Python's own
    signal.signal(number, handler)


def release_workers(vec_env: SubprocVecEnv) -> None:
    """
    Let workers react to signals again; kill those that are busy with a step, since the run has been interrupted.

    :param vec_env: the environments
    """
    if vec_env.waiting:
        for process in vec_env.processes:
            process.kill()
            process.join()
        vec_env.waiting, vec_env.closed = False, True  # close() has nothing left to wait for
        return
    for index in range(vec_env.num_envs):
        with suppress(OSError, EOFError):  # a worker has died, and learn() is ending because of that
            call(vec_env, index, stop_ignoring_signals)
