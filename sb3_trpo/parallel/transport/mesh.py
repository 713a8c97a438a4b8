"""
Short messages between ranks on CPUs, over TCP connections of their own.

An update exchanges tens to hundreds of short vectors, and each rank needs the sum before it can go on, so latency is all that
counts. gloo hands each message over between threads, and a message waits until its receiver has announced that it is ready:
on two cores, two ranks sum a short vector in 1.9 ms. Over a connection of their own it takes 0.2 ms
(``benchmarks/scaling/collectives.py``).

The number of ranks is split into factors of at most ``LARGEST_GROUP``, and there is a round for each of them. In a round, a
rank exchanges what it has so far with the few others of its group: with 64 ranks, in two rounds with seven others each. All
members of a group add up the same terms one after the other, so every rank gets the same bits.
"""

from __future__ import annotations

import selectors
import socket
import struct
from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import timedelta

import torch as th

LARGEST_GROUP = 8
"""
Most ranks that exchange something in one round, unless their number has a larger prime factor.

A round costs latency and the time to wake up, and in larger groups there is more work for other members. Groups of eight beat
those of four if a round costs more than the work for five members: where that is 70 µs each, from 0.3 ms of latency on
(``benchmarks/scaling/model.py``).
"""
UNASKED = 2**15
"""
Bytes that a rank sends although the others may be busy. Before more it waits for their header.

The kernel takes this much for a rank that does not read. If it took no more, the connection would count as silent, and end.
"""
HEADER = struct.Struct("!II")
"""What precedes a message: its number, and its length in bytes."""
MOST_BYTES = 2**20
"""
Bytes of a vector up to which it goes through the mesh; longer ones go around gloo's ring.

The ring sends each rank fewer bytes, but waits ``2 (P - 1)`` times. On two cores, with two to eight ranks, both take about
as long for 1.2 MB, and the ring is quicker for 4 MB (``benchmarks/scaling/collectives.py``).
"""


def factors(n: int) -> list[int]:
    """
    Split a number into a few factors, none larger than ``LARGEST_GROUP`` if its prime factors are not.

    :param n: the number
    :return: factors with the product ``n``
    """
    found, divisor = [1], 2
    while n > 1:
        while n % divisor:
            divisor += 1
        n //= divisor
        if found[-1] * divisor <= LARGEST_GROUP:
            found[-1] *= divisor
        else:
            found.append(divisor)
    return found


def rounds(rank: int, size: int) -> list[list[int]]:
    """
    Plan the exchanges of a rank.

    With the factors as the bases of digits, a rank's number has a digit for each round, and a group has all ranks that agree
    in the others.

    :param rank: its number
    :param size: number of ranks
    :return: for each round the group of the rank, in ascending order
    """
    groups, stride = [], 1
    for factor in factors(size):
        first = rank - rank // stride % factor * stride
        groups.append([*range(first, first + factor * stride, stride)])
        stride *= factor
    return groups


class Mesh:
    """
    Connections of a rank to those with which it exchanges something.

    :param rank: its number
    :param size: number of ranks
    :param links: a connection to each rank that is in a group with it
    :param patience: how long to wait for another rank
    """

    def __init__(self, rank: int, size: int, links: Mapping[int, socket.socket], patience: timedelta) -> None:
        self._rank, self._count = rank, 0
        self._rounds = rounds(rank, size)
        self._links = links
        for link in links.values():
            link.settimeout(None)
            link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", int(patience.total_seconds()), 0))

    def sum(self, values: th.Tensor) -> th.Tensor:
        """
        Add up over the ranks.

        :param values: terms of this rank, of the same shape and type on all
        :return: the sums
        :raises OSError: if a connection ends, or if ranks exchange different things
        """
        for group in self._rounds:
            first, *others = self._exchange(group, values)
            values = first.clone()
            for each in others:  # one after the other: th.sum would add in an order that depends on the processor
                values += each
        return values

    def gather(self, values: th.Tensor) -> th.Tensor:
        """
        Collect a tensor from each rank.

        :param values: that of this rank, of the same shape and type on all
        :return: those of all ranks, in the order of the ranks, shape ``(size, ...)``
        :raises OSError: if a connection ends, or if ranks exchange different things
        """
        stacked = values[None]
        for group in self._rounds:  # the strides grow, so a group has the rows of consecutive ranks
            stacked = self._exchange(group, stacked).flatten(0, 1)
        return stacked

    def close(self) -> None:
        """Close the connections. Ranks that wait for this one notice it."""
        for link in self._links.values():
            with suppress(OSError):  # the other rank has closed it
                link.shutdown(socket.SHUT_RDWR)  # also if a child process has a copy
            link.close()

    def _exchange(self, group: list[int], values: th.Tensor) -> th.Tensor:
        """Return what each member of a group has, stacked in the order of the group."""
        size = values.nbytes
        messages = th.empty(len(group), HEADER.size + -(-size // 8) * 8, dtype=th.uint8)  # whole words: rows are aligned
        stacked = messages[:, HEADER.size : HEADER.size + size].view(values.dtype).view(len(group), *values.shape)
        position = group.index(self._rank)
        stacked[position] = values.detach()
        rows = [memoryview(row)[: HEADER.size + size] for row in messages.numpy()]
        own = rows.pop(position)
        HEADER.pack_into(own, 0, self._count, size)
        self._count = (self._count + 1) % 2**32
        links = [self._links[rank] for rank in group if rank != self._rank]
        begin = len(own) if size <= UNASKED else HEADER.size
        try:
            swap(own[:begin], dict(zip(links, (row[:begin] for row in rows), strict=True)))
            require_same(own, rows)
            if begin < len(own):
                swap(own[begin:], dict(zip(links, (row[begin:] for row in rows), strict=True)))
        except BaseException:  # an interrupt, too, may leave half a message behind
            self.close()
            raise
        return stacked


def require_same(own: memoryview, others: Iterable[memoryview]) -> None:
    """
    Check that the others have sent the same message, for sums of different things would look like any other.

    :param own: the message of this rank
    :param others: those of the others
    :raises ConnectionError: if a header differs
    """
    for each in others:
        if each[: HEADER.size] != own[: HEADER.size]:
            pair = " and ".join("message {} of {} bytes".format(*HEADER.unpack_from(row)) for row in (own, each))
            raise ConnectionError(f"Ranks exchange different things: {pair}.")


def swap(sent: memoryview, received: Mapping[socket.socket, memoryview]) -> None:
    """
    Send the same to several ranks, and receive as much from each of them.

    :param sent: what to send
    :param received: where to write what comes from each connection
    :raises OSError: if a connection ends
    """
    unread = dict(received)
    unsent = {link: sent[_send(link, sent) :] for link in received}
    while any(unsent.values()):  # the buffers of the kernel are full, perhaps because the others are waiting here as well
        _do_what_is_possible(unsent, unread)
    for link, rest in unread.items():
        _receive_all(link, rest)


def _do_what_is_possible(unsent: dict[socket.socket, memoryview], unread: dict[socket.socket, memoryview]) -> None:
    """Wait until some connections can send or receive, and have them do it."""
    with selectors.DefaultSelector() as selector:
        for link, rest in unsent.items():
            awaited = selectors.EVENT_WRITE * bool(rest) | selectors.EVENT_READ * bool(unread[link])
            if awaited:
                selector.register(link, awaited, link)
        ready = [(key.data, events) for key, events in selector.select()]
    for link, events in ready:
        if events & selectors.EVENT_WRITE:
            unsent[link] = unsent[link][_send(link, unsent[link]) :]
        if events & selectors.EVENT_READ:
            unread[link] = unread[link][_receive(link, unread[link], socket.MSG_DONTWAIT) :]


def _send(link: socket.socket, data: memoryview) -> int:
    """Send what the kernel takes at once; return how many bytes these are."""
    try:
        return link.send(data, socket.MSG_DONTWAIT)
    except BlockingIOError:
        return 0


def _receive_all(link: socket.socket, into: memoryview) -> None:
    """Wait until everything has come."""
    while into:
        into = into[_receive(link, into, socket.MSG_WAITALL) :]


def _receive(link: socket.socket, into: memoryview, flags: int) -> int:
    """Receive bytes; return how many."""
    n = link.recv_into(into, 0, flags)
    if n == 0:
        raise ConnectionResetError("The other rank has closed the connection.")
    return n
