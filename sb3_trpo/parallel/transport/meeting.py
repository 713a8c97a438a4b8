"""How ranks find each other and open the connections of a mesh."""

from __future__ import annotations

import ipaddress
import os
import socket
import struct
import time
import uuid
import warnings
from collections.abc import Collection, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import TypeVar

import torch.distributed as dist

from sb3_trpo.parallel.transport.mesh import Mesh, rounds

T = TypeVar("T")
Address = tuple[str, int]

ANSWER_TIME = 30.0
"""Seconds within which all ranks must have connected, after all have said where they are."""
GREETING_TIME = 5.0
"""Seconds within which a program that has connected must say who it is."""
GREETING = struct.Struct("!16sI")
"""What both ends of a connection say first: the word that all ranks have agreed on, and their number."""


def open_mesh(rank: int, size: int, patience: timedelta) -> Mesh | None:
    """
    Connect the ranks of torch's default process group.

    :param rank: of this process
    :param size: number of ranks
    :param patience: how long an exchange waits for another rank
    :return: the mesh; ``None`` on all ranks if one of them cannot reach another, or on Windows
    """
    if not hasattr(socket, "MSG_DONTWAIT"):
        return None
    partners = {other for group in rounds(rank, size) for other in group} - {rank}
    links: dict[int, socket.socket] = {}
    with _listener() as listener:
        word, addresses = _introduce((_own_address(rank), listener.getsockname()[1]), size)
        fault = None
        try:
            _call([each for each in partners if each < rank], addresses, GREETING.pack(word, rank), links)
            _answer([each for each in partners if each > rank], listener, GREETING.pack(word, rank), links)
            _check([each for each in partners if each < rank], word, links)
        except OSError as error:
            fault = f"rank {rank}: {error}"
        faults = [each for each in _gather(fault, size) if each is not None]
    if not faults:
        return Mesh(rank, size, links, patience)
    for link in links.values():
        link.close()
    if rank == 0:
        warnings.warn(
            f"Ranks can't open TCP connections of their own, so short messages go through gloo, which takes longer. "
            f"{'; '.join(faults)}",
            stacklevel=2,
        )
    return None


def _listener() -> socket.socket:
    """Wait for connections at a free port."""
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", 0))


def _own_address(rank: int) -> str:
    """
    Find the address by which the other ranks reach this one.

    The first rank is where the store is. Others use the address that the store sees, except on the first rank's machine: there
    it may be one that means something else elsewhere.
    """
    first = os.environ["MASTER_ADDR"]
    if rank == 0:
        return first
    for family, kind, _, _, address in socket.getaddrinfo(first, int(os.environ["MASTER_PORT"]), type=socket.SOCK_DGRAM):
        with suppress(OSError), socket.socket(family, kind) as probe:  # there may be no way to some of its addresses
            probe.connect(address)  # sends nothing, only chooses a way
            own = str(probe.getsockname()[0])
            return first if ipaddress.ip_address(own.partition("%")[0]).is_loopback else own
    return first


def _introduce(own: Address, size: int) -> tuple[bytes, list[Address]]:
    """Tell all ranks where each one is; return the first one's random word, too, which strangers do not know."""
    told = _gather((uuid.uuid4().bytes, own), size)
    return told[0][0], [address for _, address in told]


def _gather(value: T, size: int) -> list[T]:
    """Collect an object from each rank, through gloo."""
    values = [value] * size
    dist.all_gather_object(values, value)
    return values


def _call(ranks: Collection[int], addresses: Sequence[Address], greeting: bytes, links: dict[int, socket.socket]) -> None:
    """Open connections to ranks, which answer later."""
    for rank in ranks:
        links[rank] = socket.create_connection(addresses[rank], timeout=ANSWER_TIME)
        links[rank].sendall(greeting)


def _answer(ranks: Collection[int], listener: socket.socket, greeting: bytes, links: dict[int, socket.socket]) -> None:
    """Accept connections of ranks, and of nobody else."""
    word, _ = GREETING.unpack(greeting)
    missing, until = {*ranks}, time.monotonic() + ANSWER_TIME
    while missing:
        listener.settimeout(max(1e-3, until - time.monotonic()))
        link, _ = listener.accept()
        link.settimeout(GREETING_TIME)
        rank = _who_is(link, word)
        if rank not in missing:
            link.close()
            continue
        missing.remove(rank)
        links[rank] = link
        link.sendall(greeting)


def _check(ranks: Collection[int], word: bytes, links: dict[int, socket.socket]) -> None:
    """Check who has answered."""
    for rank in ranks:
        if _who_is(links[rank], word) != rank:
            raise ConnectionError(f"rank {rank} is not at {links[rank].getpeername()}")


def _who_is(link: socket.socket, word: bytes) -> int | None:
    """Read a greeting; return the number of the rank, ``None`` for a stranger."""
    said, n_said = bytearray(GREETING.size), 0
    with suppress(OSError):  # silent, or gone
        while n := link.recv_into(memoryview(said)[n_said:]):
            n_said += n
            if n_said == GREETING.size:
                break
    return int(GREETING.unpack(said)[1]) if n_said == GREETING.size and said.startswith(word) else None
