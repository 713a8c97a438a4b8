"""
How ranks notice that another one's machine has vanished.

A process that ends closes its connections, and the others notice at once. A machine that has lost its power or its network
says nothing, and a silent TCP connection stays open: a rank that waits for a message would wait until the process group's
timeout. So the kernel is asked to probe silent connections, and to end those that do not answer. The kernel of a machine whose
rank is merely busy, with a long evaluation for example, answers for it, so that no rank has to hurry.
"""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager

DESCRIPTORS = "/dev/fd"
"""Folder with the numbers of this process's open files, on Linux and macOS."""
LONGEST = 32_767
"""Most seconds of silence that Linux allows before it probes a connection."""


class Connections:
    """TCP connections of this process that a piece of code has opened, in whichever library."""

    def __init__(self) -> None:
        self._inodes: dict[int, int] = {}

    @contextmanager
    def opening(self) -> Iterator[None]:
        """Take note of all connections that are opened inside and stay open. Other systems than Linux and macOS have none."""
        before = {*_connections().items()}
        yield
        self._inodes = dict({*_connections().items()} - before)

    def end_if_silent(self, seconds: float) -> None:
        """
        Have them end if the other machine is silent: probe after each quarter of the time, and give up after three probes.

        :param seconds: until they end, at least 1; a quarter is at least a second and rounded to whole ones
        """
        quarter = min(LONGEST, max(1, int(seconds / 4)))
        for descriptor in {*self._inodes.items()} & {*_connections().items()}:  # a closed one's descriptor is used again
            _probe(descriptor[0], quarter)


def _connections() -> dict[int, int]:
    """Return the descriptors of this process's TCP connections, with the inodes, which are not used again as quickly."""
    names = os.listdir(DESCRIPTORS) if os.path.isdir(DESCRIPTORS) else []
    found = ((number, _inode_of_connection(number)) for number in map(int, names))
    return {number: inode for number, inode in found if inode is not None}


def _inode_of_connection(descriptor: int) -> int | None:
    """Return the inode of a TCP connection, ``None`` for any other file."""
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISSOCK(status.st_mode):
            return None
        with _opened(descriptor) as opened:
            opened.getpeername()  # fails while it only listens
            is_tcp = opened.family in (socket.AF_INET, socket.AF_INET6) and opened.type == socket.SOCK_STREAM
            return status.st_ino if is_tcp else None
    except OSError:  # closed since it was listed
        return None


@contextmanager
def _opened(descriptor: int) -> Iterator[socket.socket]:
    """Have a socket object of a connection, whose owner notices nothing: ``setdefaulttimeout`` would stop it blocking."""
    is_blocking = os.get_blocking(descriptor)
    with socket.socket(fileno=os.dup(descriptor)) as opened:
        os.set_blocking(descriptor, is_blocking)
        yield opened


def _probe(descriptor: int, quarter: int) -> None:
    """Have the kernel probe a connection."""
    options = {
        "TCP_KEEPIDLE": quarter,  # seconds of silence before the first probe
        "TCP_KEEPALIVE": quarter,  # what macOS calls it
        "TCP_KEEPINTVL": quarter,  # seconds between two
        "TCP_KEEPCNT": 3,
        "TCP_USER_TIMEOUT": 3000 * quarter,  # milliseconds that data may wait for an answer, too
    }
    with _opened(descriptor) as opened:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name in options.keys() & vars(socket).keys():
            opened.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), options[name])
