import os
import socket
import warnings
from contextlib import ExitStack
from unittest import mock

import pytest
import torch as th
import torch.distributed as dist
from helpers.ranks import in_ranks

from sb3_trpo.parallel.distributed import connect
from sb3_trpo.parallel.launcher import PROCESS_GROUP
from sb3_trpo.parallel.transport import meeting

CPU = th.device("cpu")


def sum_with(patches, rank):
    """Form the group with patches; return whether there is a mesh, a sum, and what the rank is warned of."""
    with warnings.catch_warnings(record=True) as caught, ExitStack() as stack:
        for name, value in patches.items():
            stack.enter_context(mock.patch.object(meeting, name, value))
        warnings.simplefilter("always")
        total = int(connect(None, CPU).sum(th.tensor(rank + 1)))
    return PROCESS_GROUP.mesh is not None, total, [str(each.message) for each in caught if "TCP" in str(each.message)]


def with_strangers(rank):
    introduce = meeting._introduce

    def introduced(own, size):
        word, addresses = introduce(own, size)
        if rank == 2:  # before this rank itself has connected
            for said in (b"GET / HTTP/1.1\r\nHost: somewhere\r\n\r\n", b"", meeting.GREETING.pack(b"another word", 2)):
                with socket.create_connection(addresses[0]) as stranger:
                    stranger.sendall(said)
        return word, addresses

    return sum_with({"_introduce": introduced}, rank)


def test_strangers_are_sent_away():
    assert in_ranks(3, with_strangers) == [(True, 6, [])] * 3


def with_an_address_that_nobody_reaches(rank):
    own_address = "127.0.0.2" if rank == 1 else "127.0.0.1"
    listener = socket.create_server(("127.0.0.1", 0))
    return sum_with({"_own_address": lambda _: own_address, "_listener": lambda: listener, "ANSWER_TIME": 2.0}, rank)


def test_without_a_way_from_each_to_each_all_ranks_use_gloo_and_the_first_says_why():
    (has_mesh, total, (text,)), *others = in_ranks(3, with_an_address_that_nobody_reaches)
    assert (has_mesh, total) == (False, 6)
    assert "short messages go through gloo" in text
    assert "rank 2: " in text
    assert others == [(False, 6, [])] * 2


def with_another_program_at_the_address(rank):
    with socket.create_server(("127.0.0.1", 0)) as other:
        introduce = meeting._introduce

        def introduced(own, size):
            word, addresses = introduce(own, size)
            return word, [("127.0.0.1", other.getsockname()[1]) if rank == 1 else addresses[0], addresses[1]]

        return sum_with({"_introduce": introduced, "ANSWER_TIME": 1.0, "GREETING_TIME": 1.0}, rank)


def test_another_program_at_a_ranks_address_is_not_taken_for_it():
    (has_mesh, total, (text,)), other = in_ranks(2, with_another_program_at_the_address)
    assert (has_mesh, total) == (False, 3)
    assert "rank 1: rank 0 is not at ('127.0.0.1', " in text
    assert other == (False, 3, [])


@pytest.mark.parametrize(("rank", "first", "expected"), [
    (0, "somewhere", "somewhere"),
    (1, "localhost", "localhost"),
    (1, "127.0.1.1", "127.0.1.1"),
])  # fmt: skip
def test_on_the_first_ranks_machine_its_name_is_the_address(rank, first, expected, monkeypatch):
    monkeypatch.setenv("MASTER_ADDR", first)
    monkeypatch.setenv("MASTER_PORT", "1")
    assert meeting._own_address(rank) == expected


class WithoutIPv6(socket.socket):
    def connect(self, address):
        if self.family == socket.AF_INET6:
            raise OSError("Network is unreachable")


@pytest.mark.parametrize("reachable", [["192.0.2.1"], []])
def test_an_address_to_which_there_is_no_way_is_passed_over(reachable, monkeypatch):
    found = [(socket.AF_INET6, socket.SOCK_DGRAM, 0, "", ("2001:db8::1", 1, 0, 0))]
    found += [(socket.AF_INET, socket.SOCK_DGRAM, 0, "", (address, 1)) for address in reachable]
    monkeypatch.setenv("MASTER_ADDR", "somewhere")
    monkeypatch.setenv("MASTER_PORT", "1")
    monkeypatch.setattr(socket, "socket", WithoutIPv6)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    monkeypatch.setattr(WithoutIPv6, "getsockname", lambda _: ("198.51.100.7", 1))
    assert meeting._own_address(1) == ("198.51.100.7" if reachable else "somewhere")


def without_sockets_that_can_do_it(rank):
    with mock.patch.object(socket, "MSG_DONTWAIT"):
        del socket.MSG_DONTWAIT
        return sum_with({}, rank)


def test_windows_has_no_mesh():
    assert in_ranks(2, without_sockets_that_can_do_it) == [(False, 3, [])] * 2


def leave(rank):
    connect(None, CPU)
    links = PROCESS_GROUP.mesh._links.values()
    were_open = all(each.fileno() >= 0 for each in links)
    PROCESS_GROUP.leave()
    return were_open, [each.fileno() for each in links]


def test_connections_are_closed_with_the_group():
    assert in_ranks(3, leave) == [(True, [-1, -1])] * 3


def fork(rank):
    communicator = connect(None, CPU)
    child = os.fork()
    if child == 0:
        PROCESS_GROUP.leave()  # as at the end of any process
        os._exit(0)
    os.waitpid(child, 0)
    return int(communicator.sum(th.tensor(rank)))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_child_process_that_ends_does_not_close_its_parents_connections():
    assert in_ranks(2, fork) == [1, 1]


def fail_to_meet(rank):
    with mock.patch.object(meeting, "_call", side_effect=KeyboardInterrupt), pytest.raises((KeyboardInterrupt, RuntimeError)):
        connect(None, CPU)
    return dist.is_initialized()


def test_a_rank_that_fails_to_meet_the_others_has_left_the_group():
    assert in_ranks(2, fail_to_meet) == [False, False]
