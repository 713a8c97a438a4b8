import math
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from functools import reduce
from unittest import mock

import numpy as np
import pytest
import torch as th
from hypothesis import given, strategies as st

from sb3_trpo.parallel.transport import mesh as mesh_module
from sb3_trpo.parallel.transport.mesh import LARGEST_GROUP, MOST_BYTES, UNASKED, Mesh, factors, rounds

PATIENCE = timedelta(seconds=20)
DTYPES = (th.float32, th.float64, th.float16, th.bfloat16, th.int64, th.int32, th.uint8, th.bool)


@contextmanager
def meshes(size, patience=PATIENCE):
    """Have the meshes of all ranks, joined within this process."""
    links = [{} for _ in range(size)]
    for rank in range(size):
        for other in {other for group in rounds(rank, size) for other in group if other > rank}:
            links[rank][other], links[other][rank] = tcp_pair()
    made = [Mesh(rank, size, links[rank], patience) for rank in range(size)]
    try:
        yield made
    finally:
        for each in made:
            each.close()


def tcp_pair():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        one = socket.create_connection(listener.getsockname())
        return one, listener.accept()[0]


def together(made, task):
    """Let all ranks do something at the same time."""
    with ThreadPoolExecutor(len(made)) as pool:
        return [each.result(60) for each in [pool.submit(task, rank, mesh) for rank, mesh in enumerate(made)]]


def is_prime(n):
    return n > 1 and all(n % divisor for divisor in range(2, math.isqrt(n) + 1))


@given(st.integers(1, 5000))
def test_factors_are_small_unless_they_are_prime(n):
    found = factors(n)
    assert math.prod(found) == n
    assert all(each <= LARGEST_GROUP or is_prime(each) for each in found)


def test_1024_ranks_need_four_rounds():
    assert factors(64) == [8, 8]
    assert factors(1024) == [8, 8, 8, 2]
    assert [len(group) - 1 for group in rounds(700, 1024)] == [7, 7, 7, 1]


@given(st.integers(1, 200))
def test_after_all_rounds_every_rank_has_everything_once_and_in_the_same_order(size):
    has = [[rank] for rank in range(size)]
    for step in range(len(factors(size))):
        groups = [rounds(rank, size)[step] for rank in range(size)]
        assert all(rank in group and groups[other] == group for rank, group in enumerate(groups) for other in group)
        has = [[each for other in group for each in has[other]] for group in groups]
    assert has == [[*range(size)]] * size


def numbers_of(rank, n=1000):
    return th.from_numpy(np.random.default_rng(rank).standard_normal(n).astype(np.float32))


@pytest.mark.parametrize("size", [2, 3, 8, 12, 18, 27])
def test_sums_are_right_and_have_the_same_bits_on_all_ranks(size):
    with meshes(size) as made:
        sums = together(made, lambda rank, mesh: mesh.sum(numbers_of(rank)))
    exact = sum(numbers_of(rank).double() for rank in range(size))
    assert all(each.equal(sums[0]) for each in sums)
    assert (sums[0].double() - exact).abs().max() < 1e-6 * size


def test_up_to_eight_ranks_are_added_up_in_their_order():
    with meshes(8) as made:
        sums = together(made, lambda rank, mesh: mesh.sum(numbers_of(rank)))
    assert sums[0].equal(reduce(th.add, map(numbers_of, range(8))))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (0,)])
def test_all_types_and_shapes_are_summed_and_gathered(dtype, shape):
    def exchange(rank, mesh):
        own = th.full(shape, rank).to(dtype)
        return mesh.sum(own), mesh.gather(own.t() if own.ndim == 2 else own)

    with meshes(6) as made:
        for total, stacked in together(made, exchange):
            expected = th.stack([th.full(shape, rank).to(dtype) for rank in range(6)])
            assert total.dtype == stacked.dtype == dtype
            assert total.equal(expected.sum(0, dtype=dtype))
            assert stacked.equal(expected.transpose(1, 2) if len(shape) == 2 else expected)


def test_values_with_a_gradient_are_taken_as_they_are():
    with meshes(2) as made:
        for total in together(made, lambda rank, mesh: mesh.sum(th.tensor([rank + 1.0], requires_grad=True))):
            assert total.tolist() == [3.0]
            assert not total.requires_grad


def test_messages_that_no_buffer_can_hold_do_not_block_each_other():
    n = 8_000_000
    with meshes(3) as made:
        for total in together(made, lambda rank, mesh: mesh.sum(th.full((n,), rank + 1, dtype=th.uint8))):
            assert total.unique().tolist() == [6]


def test_ranks_may_be_one_message_apart():
    def exchange(rank, mesh):
        sums = []
        for i in range(200):
            time.sleep(1e-3 * (i % 5 == rank))
            sums.append(int(mesh.sum(th.tensor(rank + i))))
        return sums

    with meshes(5) as made:
        assert together(made, exchange) == [[10 + 5 * i for i in range(200)]] * 5


def test_a_rank_that_has_left_is_noticed():
    def exchange(rank, mesh):
        if rank == 1:
            mesh.close()
            return
        with pytest.raises(OSError, match=r"closed|reset|Broken pipe"):
            mesh.sum(th.zeros(3))

    with meshes(3) as made:
        together(made, exchange)


def test_a_rank_that_hangs_is_not_waited_for_beyond_patience():
    with meshes(2, timedelta(seconds=1)) as made, pytest.raises(OSError, match="temporarily unavailable"):
        made[0].sum(th.zeros(3))


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="other systems have other options")
@pytest.mark.parametrize("n", [UNASKED, 10 * UNASKED, MOST_BYTES])
def test_a_rank_that_is_busy_is_waited_for_whatever_the_length(n):
    def exchange(rank, mesh):
        for link in mesh._links.values():
            link.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1000)
        time.sleep(4.0 * rank)
        return mesh.sum(th.ones(n, dtype=th.uint8)).unique().tolist()

    with meshes(2) as made:
        assert together(made, exchange) == [[2]] * 2


def test_different_messages_are_not_taken_for_the_same():
    def exchange(rank, mesh):
        for length in ((4,), (2, 2))[rank]:
            mesh.sum(th.zeros(length))

    with meshes(2) as made, pytest.raises(OSError, match=r"exchange different things|closed|reset"):
        together(made, exchange)


@pytest.mark.parametrize("n", [4, 3 * UNASKED])
def test_a_message_more_on_one_rank_is_noticed(n):
    with meshes(2) as made:
        together(made, lambda rank, mesh: mesh.sum(th.zeros(n)))
        made[1]._count += 1
        with pytest.raises(OSError, match=rf"message 1 of {4 * n} bytes and message 2 of|closed|reset"):
            together(made, lambda rank, mesh: mesh.sum(th.zeros(n)))


def test_after_an_interrupt_in_an_exchange_no_other_one_is_possible():
    with meshes(2) as made:
        with mock.patch.object(mesh_module, "_receive_all", side_effect=KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
            made[0].sum(th.zeros(1))
        for each in made:
            with pytest.raises(OSError, match=r"closed|reset|Bad file descriptor|Broken pipe"):
                each.sum(th.zeros(10))
