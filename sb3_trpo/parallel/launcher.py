"""
How processes started by a launcher such as ``torchrun`` form a process group, and how they leave it.

The launcher gives each process its rank, the number of ranks and the address of a store: a table of keys and values that all
processes can reach.
"""

from __future__ import annotations

import atexit
import os
import time
import uuid
from datetime import timedelta
from typing import TYPE_CHECKING

import torch.distributed as dist

from sb3_trpo.parallel.faults import FaultReports
from sb3_trpo.parallel.transport.keep_alive import Connections
from sb3_trpo.parallel.transport.meeting import open_mesh
from sb3_trpo.parallel.transport.mesh import Mesh

if TYPE_CHECKING:  # torch may be built without it
    from torch._C._distributed_c10d import Store

VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""Environment variables that a launcher sets and torch's ``env://`` reads."""
REMINDER, TIMEOUT = 15.0, 1800.0
"""Seconds until the first rank names those that are missing, and until it gives up; the latter is torch's timeout for gloo."""
POLL_INTERVAL = 0.01
"""Seconds between two checks for missing ranks."""


class ProcessGroup:
    """
    The process group that this package forms for all models of this process: torch's default one.

    :ivar faults: reports of ranks that have ended. Kept after :meth:`leave`: the first rank may hold the store, which others
        still read
    :ivar mesh: for short messages; ``None`` if they go through the process group as well
    :ivar connections: its connections to other ranks and to the store
    :ivar is_open: whether the group has been formed and not left
    """

    def __init__(self) -> None:
        self.faults: FaultReports | None = None
        self.mesh: Mesh | None = None
        self.connections = Connections()
        self.is_open = False
        self._process = os.getpid()

    def form(self, patience: timedelta | None = None) -> None:
        """
        Form the group with the other processes of the launcher.

        :param patience: how long an exchange over gloo waits for another rank; ``None`` for NCCL, with torch's default
        :raises ValueError: if there is no launcher
        :raises RuntimeError: if this process has left it before, or a rank is missing
        """
        missing = [name for name in VARIABLES if name not in os.environ]
        if missing or not dist.is_available():
            raise ValueError(
                f"distributed=True or WORLD_SIZE > 1 needs a launcher, but {', '.join(missing) or 'torch.distributed'} is "
                "missing. Start the script with torchrun, set these variables, or give distributed=False."
            )
        self.require_not_left()
        # Default arguments in this module keep the group that exists when it is imported. Imported later, for example by a
        # compiler, it would keep ours, and gloo's threads with it, until the interpreter ends.
        import torch.distributed.nn  # noqa: F401
        from torch.distributed.distributed_c10d import PrefixStore
        from torch.distributed.rendezvous import rendezvous

        with self.connections.opening():
            store, rank, size = next(rendezvous("env://"))
            own_store = PrefixStore(meet(store, rank, size), store)
            dist.init_process_group(store=own_store, rank=rank, world_size=size, timeout=patience)
            self.faults, self.is_open, self._process = FaultReports(own_store, rank, size), True, os.getpid()
            atexit.register(self.leave)
            try:
                self.mesh = open_mesh(rank, size, patience) if patience is not None else None
            except BaseException as error:
                self.leave(error)
                raise

    def require_not_left(self) -> None:
        """
        Check that this process has not left the others, for it cannot rejoin them.

        :raises RuntimeError: if it has
        """
        if self.faults is not None and not self.is_open:
            raise RuntimeError("This process left the other ranks after an error; start the script again to continue.")

    def leave(self, error: BaseException | None = None) -> None:
        """
        Leave the group, unless that has been done. Ranks that wait for this one notice that their connections end.

        :param error: what ends this rank, for the report; ``None`` at the regular end
        """
        if self.faults is not None and self.is_open and self._process == os.getpid():  # not a child with copies of all this
            if error is not None:
                self.faults.write(error)
            self.is_open = False
            if self.mesh is not None:
                self.mesh.close()
            dist.destroy_process_group()


PROCESS_GROUP = ProcessGroup()
"""One for the whole process, like torch's default group: models that are made one after another share it."""


def meet(store: Store, rank: int, size: int) -> str:
    """
    Agree on a name for this attempt to form a group, so that nothing is left in the store of an earlier attempt.

    torchrun keeps its store when it restarts the ranks, and the addresses in it are those of processes that have died. So each
    rank writes a greeting with a random word. The first rank answers every greeting that it finds until all ranks have joined.

    :param store: table of keys and values that all ranks can reach
    :param rank: of this process
    :param size: number of ranks
    :return: the name, the same on all ranks
    :raises RuntimeError: on the first rank, if others have not joined in time
    """
    word = uuid.uuid4().hex
    if rank > 0:
        store.set(f"hello/{rank}", word)
        attempt: str = store.get(f"welcome/{word}").decode()  # waits for the answer
        store.set(f"{attempt}/{rank}", "")
        return attempt
    missing, start, has_reminded = {*range(1, size)}, time.monotonic(), False
    while missing:
        _welcome(store, word, missing)
        waited = time.monotonic() - start
        if missing and waited > (TIMEOUT if has_reminded else REMINDER):
            who = f"of {size} ranks {', '.join(map(str, sorted(missing)))} have not joined the run"
            if has_reminded:
                raise RuntimeError(f"In {TIMEOUT:.0f} seconds {who}. See what they print.")
            print(f"sb3_trpo is waiting: {who}. To train a model on one rank alone, set distributed=False.", flush=True)
            has_reminded = True
        time.sleep(POLL_INTERVAL)
    return word


def _welcome(store: Store, word: str, missing: set[int]) -> None:
    """Answer the ranks that have written a greeting, and remove those that have received the answer from ``missing``."""
    for rank in [*missing]:
        if store.check([f"hello/{rank}"]):  # perhaps from a process that has died; a live one will overwrite it
            store.set(f"welcome/{store.get(f'hello/{rank}').decode()}", word)
        if store.check([f"{word}/{rank}"]):
            missing.remove(rank)
