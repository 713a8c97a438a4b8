"""How the processes that a launcher has started find together, and how they part."""

from __future__ import annotations

import atexit
import os
import time
import uuid

import torch as th
import torch.distributed as dist

from sb3_trpo.parallel.communicator import ALONE, Communicator, Store, World, WorldOverGloo

VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What a launcher sets; torch's ``env://`` reads them."""
FIRST_PATIENCE, PATIENCE = 15.0, 1800.0
"""Seconds after which missing ranks are named, and after which they are given up, as torch has it for gloo."""


class Group:
    """The process group that this module makes, at most one in a process."""

    store: Store | None = None
    has_ended = False

    @classmethod
    def make(cls) -> None:
        """
        Make it.

        :raises ValueError: if there is no launcher
        :raises RuntimeError: if it has been left before
        """
        missing = [name for name in VARIABLES if name not in os.environ]
        if missing or not dist.is_available():
            raise ValueError(
                f"distributed=True or WORLD_SIZE > 1 needs a launcher, but {', '.join(missing) or 'torch.distributed'} is "
                "missing. Start the script with torchrun, set these variables, or give distributed=False."
            )
        if cls.has_ended:
            raise RuntimeError("This process left the other ranks after an error; start the script again to go on together.")
        import torch.distributed.nn  # noqa: F401  # its functions' defaults keep the group that they meet, and with it gloo's threads
        from torch.distributed.distributed_c10d import PrefixStore
        from torch.distributed.rendezvous import rendezvous

        store, rank, size = next(rendezvous("env://"))
        cls.store = PrefixStore(_meet(store, rank, size), store)
        dist.init_process_group(store=cls.store, rank=rank, world_size=size)
        atexit.register(cls.leave)

    @classmethod
    def leave(cls) -> None:
        """End it, if it is there; ranks that wait for this one are told so by their connection's end."""
        if cls.store is not None:
            cls.store, cls.has_ended = None, True
            dist.destroy_process_group()


def join(distributed: bool | None, device: th.device) -> Communicator:
    """
    Join the ranks of this run.

    :param distributed: ``None`` joins if a launcher has started several processes, ``True`` in any case, ``False`` never.
        A process group that the script has made is used and left alone
    :param device: of the policy
    :return: the ranks
    :raises ValueError: if there is no launcher to be joined
    :raises RuntimeError: if this process has left the others after an error
    """
    is_there = dist.is_available() and dist.is_initialized()
    size = dist.get_world_size() if is_there else int(os.environ.get("WORLD_SIZE", "1"))
    if distributed is False or (distributed is None and size == 1):
        return ALONE
    if device.type == "cuda" and device.index is None:
        th.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    if not is_there:
        Group.make()
    kind = World if device.type == "cuda" else WorldOverGloo
    return kind(device, Group.store, Group.leave)


def _meet(store: Store, rank: int, size: int) -> str:
    """
    Agree on a name for this attempt, under which nothing is left of an earlier one.

    torchrun keeps its store when it starts the ranks again, and the addresses in it are those of the dead. So each rank says
    hello by a word that nobody has used, and the first one answers to every word that it sees, until all have come.
    """
    word = uuid.uuid4().hex
    if rank > 0:
        store.set(f"hello/{rank}", word)
        attempt: str = store.get(f"welcome/{word}").decode()
        store.set(f"{attempt}/{rank}", "")
        return attempt
    missing, begin, has_told = {*range(1, size)}, time.monotonic(), False
    while missing:
        for other in [*missing]:
            if store.check([f"hello/{other}"]):
                store.set(f"welcome/{store.get(f'hello/{other}').decode()}", word)
            if store.check([f"{word}/{other}"]):
                missing.remove(other)
        waited = time.monotonic() - begin
        if missing and waited > (PATIENCE if has_told else FIRST_PATIENCE):
            who = f"of {size} ranks {', '.join(map(str, sorted(missing)))} have not come to share the run"
            if has_told:
                raise RuntimeError(f"In {PATIENCE:.0f} seconds {who}. See what they print.")
            print(f"sb3_trpo waits: {who}. A model that is for one rank alone wants distributed=False.", flush=True)
            has_told = True
        time.sleep(0.01)
    return word
