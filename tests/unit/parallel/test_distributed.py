import hashlib
from unittest import mock

import numpy as np
import pytest
import torch as th
import torch.distributed as dist
from helpers.ranks import in_ranks

from sb3_trpo.parallel.communicator import ALONE
from sb3_trpo.parallel.distributed import DistributedCommunicator, GlooCommunicator, connect
from sb3_trpo.parallel.launcher import PROCESS_GROUP, VARIABLES
from sb3_trpo.parallel.transport.mesh import MOST_BYTES

CPU = th.device("cpu")
DTYPES = (th.float32, th.float64, th.float16, th.bfloat16, th.int64, th.int32, th.int8, th.uint8, th.bool)
LAUNCHED = {"RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}


@pytest.mark.parametrize(("distributed", "variables"), [
    (None, {}),
    (False, {}),
    (None, {"WORLD_SIZE": "1", **LAUNCHED}),
    (False, {"WORLD_SIZE": "2", **LAUNCHED}),
])  # fmt: skip
def test_a_process_stays_alone_without_other_ranks_or_if_it_wants_to(monkeypatch, distributed, variables):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert connect(distributed, CPU) is ALONE
    assert not dist.is_initialized()


def numbers_of(rank, n):
    return th.from_numpy(np.random.default_rng(rank).standard_normal(n).astype(np.float32))


def summed(communicator, n):
    """Return a sum's digest and its distance from NumPy's."""
    own = numbers_of(communicator.rank, n)
    before = own.clone()
    total = communicator.sum(own).double().numpy()
    exact = sum(numbers_of(rank, n).double().numpy() for rank in range(communicator.size))
    assert own.equal(before)
    return hashlib.sha256(total.tobytes()).hexdigest(), float(np.abs(total - exact).max())


def tensors_of(rank):
    return [
        *(th.full((3,), rank + 1).to(dtype) for dtype in DTYPES),
        th.tensor([rank == 0]),
        th.full((3, 4), rank + 0.5).t(),
        th.full((4, 6), rank + 0.5)[::2, ::3],
        th.tensor(rank),
    ]


def exchange(rank):
    communicator = connect(None, CPU)
    copied = tensors_of(rank)
    communicator.broadcast(copied)
    return {
        "who": (type(communicator), communicator.rank, communicator.size, communicator.is_first),
        "sum": communicator.sum(th.tensor([rank, 10])).tolist(),
        "mean": communicator.mean(th.tensor([rank * (rank + 1.0), 3.0 * (rank + 1)]), rank + 1).tolist(),
        "gather": communicator.gather(th.tensor([[rank, 7]])).tolist(),
        "gather bools": communicator.gather(th.tensor(rank == 1)).tolist(),
        "gather_objects": communicator.gather_objects({"rank": rank, "long": "x" * 1000 * rank}),
        "broadcast": all(a.equal(b) and a.dtype == b.dtype for a, b in zip(copied, tensors_of(0), strict=True)),
        "broadcast_object": communicator.broadcast_object([rank, None, "a"]),
        "short": summed(communicator, MOST_BYTES // 4),
        "long": summed(communicator, MOST_BYTES // 4 + 1),
        "again": connect(True, CPU).size,
    }


@pytest.fixture(scope="module", params=[2, 3])
def exchanged(request):
    return in_ranks(request.param, exchange)


def test_every_rank_knows_which_one_it_is(exchanged):
    size = len(exchanged)
    assert [each["who"] for each in exchanged] == [(GlooCommunicator, rank, size, rank == 0) for rank in range(size)]


def test_a_second_model_shares_the_process_group(exchanged):
    assert all(each["again"] == len(exchanged) for each in exchanged)


def test_every_rank_gets_what_all_have(exchanged):
    size = len(exchanged)
    for each in exchanged:
        assert each["sum"] == [sum(range(size)), 10 * size]
        assert each["gather"] == [[[rank, 7]] for rank in range(size)]
        assert each["gather bools"] == [rank == 1 for rank in range(size)]
        assert each["gather_objects"] == [{"rank": rank, "long": "x" * 1000 * rank} for rank in range(size)]


def test_every_rank_gets_what_the_first_has(exchanged):
    for each in exchanged:
        assert each["broadcast"]
        assert each["broadcast_object"] == [0, None, "a"]


def test_a_mean_is_over_the_states_of_all_ranks(exchanged):
    weights = np.arange(1, len(exchanged) + 1)
    expected = [np.average(np.arange(len(exchanged)), weights=weights), 3.0]
    assert all(each["mean"] == pytest.approx(expected, rel=1e-6) for each in exchanged)


@pytest.mark.parametrize("length", ["short", "long"])
def test_sums_are_right_and_have_the_same_bits_on_all_ranks(exchanged, length):
    digests, errors = zip(*(each[length] for each in exchanged), strict=True)
    assert len(set(digests)) == 1
    assert max(errors) < 2e-6


def use_the_scripts_own_group(rank):
    dist.init_process_group("gloo")
    communicator = connect(None, CPU)
    total = int(communicator.sum(th.tensor(rank + 1)))
    communicator.leave(KeyError("oh"))
    PROCESS_GROUP.leave()
    is_open = dist.is_initialized()
    again = int(communicator.sum(th.tensor(1)))
    dist.destroy_process_group()
    return total, is_open, again


def test_a_process_group_that_the_script_has_made_is_used_and_never_left():
    assert in_ranks(2, use_the_scripts_own_group) == [(3, True, 2)] * 2


def reductions_of_lengths(rank):
    """Count how often gloo's all-reduce is called for the longest short message, and for one that is longer."""
    communicator = connect(None, CPU)
    n = MOST_BYTES // 4
    with mock.patch.object(dist, "all_reduce", wraps=dist.all_reduce) as all_reduce:
        counts = []
        for length in (n, n + 1):
            communicator.sum(th.zeros(length))
            counts.append(all_reduce.call_count)
    return counts


@pytest.mark.parametrize("size", [2, 6])
def test_short_messages_go_through_the_mesh_and_long_ones_around_gloos_ring(size):
    assert in_ranks(size, reductions_of_lengths) == [[0, 1]] * size


def reduce_by_collectives(rank):
    """Exchange as on other devices, which gloo can do too."""
    short_cut, plain = connect(None, CPU), DistributedCommunicator(CPU, None)
    values = th.linspace(-1, 1, 7) * (rank + 1)
    pairs = [(each.gather(values), each.sum(values), each.mean(values, 2.0 + rank)) for each in (short_cut, plain)]
    return [th.allclose(one, other, atol=1e-6) for one, other in zip(*pairs, strict=True)], pairs[1][1].numpy().tobytes()


def test_torchs_collectives_give_the_same_as_messages_through_the_mesh():
    results = in_ranks(3, reduce_by_collectives)
    assert all(all(close) for close, _ in results)
    assert len({bits for _, bits in results}) == 1
