import os
import socket
import sys
import time
from contextlib import ExitStack, closing

import pytest
import torch as th
from helpers.ranks import in_ranks

from sb3_trpo import TRPO
from sb3_trpo.checkpoint import ResumableCheckpoint
from sb3_trpo.parallel.distributed import connect
from sb3_trpo.parallel.transport import keep_alive
from sb3_trpo.parallel.transport.keep_alive import Connections

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="other systems have other options")
NAMES = ("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT", "TCP_USER_TIMEOUT")


def pair(stack):
    """Open a connection within this process; return both of its ends."""
    listener = stack.enter_context(closing(socket.create_server(("127.0.0.1", 0))))
    one = stack.enter_context(closing(socket.create_connection(listener.getsockname())))
    return one, stack.enter_context(closing(listener.accept()[0]))


def options(connection):
    """Return whether a connection is probed, and how."""
    values = [connection.getsockopt(socket.IPPROTO_TCP, getattr(socket, name)) for name in NAMES]
    return connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE), *values


@pytest.mark.parametrize(("seconds", "expected"), [
    (60.0, (1, 15, 15, 3, 45_000)),
    (1.0, (1, 1, 1, 3, 3_000)),
    (7.9, (1, 1, 1, 3, 3_000)),
    (1e9, (1, 32_767, 32_767, 3, 98_301_000)),
])  # fmt: skip
def test_connections_opened_meanwhile_are_probed_and_no_others(seconds, expected):
    connections = Connections()
    with ExitStack() as stack:
        earlier = pair(stack)
        usual = options(earlier[0])
        with connections.opening():
            opened = pair(stack)
        later = pair(stack)
        connections.end_if_silent(seconds)
        assert [options(each) for each in opened] == [expected] * 2
        assert [options(each) for each in (*earlier, *later)] == [usual] * 4
        assert usual[0] == 0


def test_the_latest_time_counts_and_closed_connections_are_passed_over():
    connections = Connections()
    with ExitStack() as stack:
        with connections.opening():
            one, other = pair(stack)
        connections.end_if_silent(60.0)
        connections.end_if_silent(8.0)
        assert options(one)[:2] == (1, 2)
        unrelated, _ = pair(stack)
        os.dup2(unrelated.fileno(), other.fileno())  # closes it, and uses its number again
        connections.end_if_silent(60.0)
        assert options(one)[:2] == (1, 15)
        assert options(unrelated)[0] == 0


def test_files_and_other_sockets_are_left_alone(tmp_path):
    connections = Connections()
    with ExitStack() as stack:
        before = len(os.listdir(keep_alive.DESCRIPTORS))
        with connections.opening():
            stack.enter_context((tmp_path / "file").open("w"))
            stack.enter_context(closing(socket.create_server(("127.0.0.1", 0))))
            for each in socket.socketpair():
                stack.enter_context(closing(each))
        connections.end_if_silent(60.0)
        assert len(os.listdir(keep_alive.DESCRIPTORS)) == before + 4, "no descriptor is left open"
        assert connections._inodes == {}


def test_a_system_without_the_folder_has_none(monkeypatch):
    monkeypatch.setattr(keep_alive, "DESCRIPTORS", "/nowhere")
    connections = Connections()
    with ExitStack() as stack:
        with connections.opening():
            one, _ = pair(stack)
        connections.end_if_silent(60.0)
        assert options(one)[0] == 0


def probed(rank):
    """Return how each TCP connection of a rank is probed, after all kinds of exchanges."""
    model = TRPO("MlpPolicy", "CartPole-v1", n_steps=64, seed=rank, device="cpu", distributed_timeout=20)
    model.learn(128)
    communicator = connect(None, th.device("cpu"), 20.0)
    communicator.sum(th.ones(100_000))
    communicator.gather_objects("text")
    found = []
    for number in keep_alive._connections():
        with socket.socket(fileno=os.dup(number)) as opened:
            found.append(options(opened))
    return found


def test_all_connections_of_a_rank_are_probed():
    for found in in_ranks(3, probed):
        assert len(found) >= 3, "two ranks and the store"
        assert {*found} == {(1, 5, 5, 3, 15_000)}


def wait_for_the_first(rank):
    """Have the first rank take longer than the timeout, as an evaluation would."""
    communicator = connect(None, th.device("cpu"), 1.0)
    time.sleep(4.0 * (rank == 0))
    return int(communicator.sum(th.tensor(rank)))


def test_a_rank_that_is_busy_is_waited_for():
    assert in_ranks(2, wait_for_the_first) == [1, 1]


def test_sockets_keep_blocking_whatever_the_default_timeout():
    connections = Connections()
    with ExitStack() as stack:
        with connections.opening():
            one, _ = pair(stack)
        assert os.get_blocking(one.fileno())
        socket.setdefaulttimeout(5.0)
        try:
            with connections.opening():
                pass
            connections.end_if_silent(60.0)
        finally:
            socket.setdefaulttimeout(None)
        assert os.get_blocking(one.fileno())


def test_a_run_that_is_resumed_takes_the_time_that_it_is_given(tmp_path):
    for timeout in (60.0, 20.0):
        model = TRPO("MlpPolicy", "CartPole-v1", n_steps=64, seed=0, device="cpu", distributed_timeout=timeout)
        model.learn(64, callback=ResumableCheckpoint(tmp_path, every=64, verbose=0))
        assert (model.num_timesteps, model.distributed_timeout) == (64, timeout)


@pytest.mark.parametrize("given", [0.5, -1.0, float("nan"), float("inf"), None, "60"])
def test_times_that_make_no_sense_are_refused(given):
    with pytest.raises(
        ValueError, match=r"distributed_timeout is .* but must be a number of seconds >= 1\. The default is 60\."
    ):
        TRPO("MlpPolicy", "CartPole-v1", distributed_timeout=given)
