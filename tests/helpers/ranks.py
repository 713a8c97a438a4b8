"""Several ranks on this machine: processes over gloo, forked from a server that has imported everything, or just threads."""

from __future__ import annotations

import os
import socket
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import torch as th
from helpers.forked import SERVER

from sb3_trpo.parallel.communicator import Communicator
from sb3_trpo.parallel.launcher import PROCESS_GROUP


class RankFailedError(Exception):
    """Some ranks raised errors; ``texts`` has one for each rank, ``None`` for those that ended well."""

    def __init__(self, texts: list[str | None]) -> None:
        super().__init__("\n".join(f"rank {rank}: {text}" for rank, text in enumerate(texts) if text))
        self.texts = texts


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def launched(rank: int, size: int, port: int) -> dict[str, str]:
    """Return the variables that a launcher sets."""
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size), **address}


def _run(connection: Any, variables: dict[str, str], task: Callable[..., Any], args: tuple[Any, ...]) -> None:
    os.environ.update(variables)
    th.set_num_threads(1)
    try:
        connection.send(("result", task(int(variables["RANK"]), *args)))
    except BaseException as error:
        connection.send(("error", f"{type(error).__name__}: {error}\n{traceback.format_exc()}"))
    PROCESS_GROUP.leave()


class Process:
    """
    A rank that runs ``task(rank, *args)``.

    :param rank: its number
    :param size: how many there are
    :param port: of the first one's store
    :param task: a function of a module that can be imported
    :param args: what it is given
    """

    def __init__(self, rank: int, size: int, port: int, task: Callable[..., Any], args: tuple[Any, ...]) -> None:
        self._receiver, sender = SERVER.Pipe(duplex=False)
        self.process = SERVER.Process(target=_run, args=(sender, launched(rank, size, port), task, args))
        self.process.start()
        sender.close()

    def outcome(self, timeout: float = 180.0) -> tuple[str, Any]:
        """Wait for the end. Returns "result" or "error" with the value or the text, or "died"."""
        try:
            if not self._receiver.poll(timeout):
                self.process.kill()
                return "error", "hangs"
            return self._receiver.recv()
        except EOFError:
            return "died", None
        finally:
            self.process.join(timeout)


def start(size: int, task: Callable[..., Any], *args: Any) -> list[Process]:
    port = free_port()
    return [Process(rank, size, port, task, args) for rank in range(size)]


def in_ranks(size: int, task: Callable[..., Any], *args: Any) -> list[Any]:
    """
    Run ``task(rank, *args)`` in several processes.

    :return: the results, in the order of the ranks
    :raises RankFailedError: if it raises in any
    """
    outcomes = [process.outcome() for process in start(size, task, *args)]
    if any(kind != "result" for kind, _ in outcomes):
        raise RankFailedError([None if kind == "result" else str(value or kind) for kind, value in outcomes])
    return [value for _, value in outcomes]


class ThreadCommunicator(Communicator):
    """One of several ranks that are threads: quick, for what does not depend on a process group."""

    def __init__(self, rank: int, size: int, values: list[Any], barrier: Barrier) -> None:
        self.rank, self.size = rank, size
        self._values, self._barrier = values, barrier

    def gather_objects(self, value: Any) -> list[Any]:
        self._values[self.rank] = value
        self._barrier.wait()
        values = [*self._values]
        self._barrier.wait()
        return values

    def broadcast_object(self, value: Any) -> Any:
        return self.gather_objects(value)[0]

    def gather(self, values: th.Tensor) -> th.Tensor:
        return th.stack(self.gather_objects(values))

    def broadcast(self, tensors: Sequence[th.Tensor]) -> None:
        for tensor in tensors:
            tensor.detach().copy_(self.gather(tensor)[0])

    def sum(self, values: th.Tensor) -> th.Tensor:
        return self.gather(values).sum(0)

    def mean(self, total: th.Tensor, weight: float) -> th.Tensor:
        return self.sum(total) / sum(self.gather_objects(weight))


def in_threads(size: int, task: Callable[[Communicator], Any]) -> list[Any]:
    """
    Run ``task(communicator)`` in several threads.

    :return: the results, in the order of the ranks
    """
    values, barrier = [None] * size, Barrier(size, timeout=20.0)
    with ThreadPoolExecutor(size) as pool:
        return [*pool.map(task, [ThreadCommunicator(rank, size, values, barrier) for rank in range(size)])]
