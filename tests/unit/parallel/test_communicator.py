import hashlib
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction

import gymnasium as gym
import numpy as np
import pytest
import torch as th
import torch.distributed as dist
from helpers import ranks
from helpers.ranks import RankFailedError, free_port, in_ranks
from hypothesis import given, strategies as st

from sb3_trpo.parallel.communicator import ALONE, Communicator
from sb3_trpo.parallel.consistency import checksums as fingerprint, require_same
from sb3_trpo.parallel.distributed import SHORT_MESSAGE as SHORT, DistributedCommunicator, connect
from sb3_trpo.parallel.faults import check_on_all_ranks, leaving_on_error
from sb3_trpo.parallel.launcher import PROCESS_GROUP, VARIABLES, meet
from sb3_trpo.parallel.sharding import MinibatchShard, seed_of_rank, shard_minibatches, steps_of_rank, weighted_minibatches

CPU = th.device("cpu")
INTEGERS = {1: th.uint8, 2: th.int16, 4: th.int32, 8: th.int64}
DTYPES = (th.float32, th.float64, th.float16, th.bfloat16, th.int64, th.int32, th.int16, th.int8, th.uint8, th.bool)


class Fake(Communicator):
    """One of several ranks that exist only as numbers."""

    def __init__(self, rank, size, numbers=()):
        self.rank, self.size, self.numbers = rank, size, numbers

    def gather(self, values):
        assert values == self.numbers[self.rank]
        return th.tensor(self.numbers)


@pytest.fixture
def launched(monkeypatch):
    """Sets a launcher's variables, and only these."""

    def launch(**variables):
        for name in (*VARIABLES, "LOCAL_RANK"):
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    launch()
    return launch


def test_a_reduction_of_one_rank_is_the_identity():
    values = th.tensor([1.5, -2.0])
    assert ALONE.is_first
    assert ALONE.sum(values) is values
    assert ALONE.gather(values).equal(values[None])
    assert ALONE.mean(values, 4.0).equal(values / 4.0)
    assert ALONE.gather_objects("a") == ["a"]
    assert ALONE.broadcast_object("a") == "a"
    assert (seed_of_rank(7, ALONE), seed_of_rank(None, ALONE), steps_of_rank(5, ALONE)) == (7, None, 5)


def test_one_rank_needs_nobody():
    values = th.tensor([1.5, -2.0])
    ALONE.broadcast([values])
    require_same({"a": 1}, "settings", ALONE)
    check_on_all_ranks(lambda: None, ALONE)
    assert values.tolist() == [1.5, -2.0]
    assert [*weighted_minibatches("abc", None)] == [("a", 1.0), ("b", 1.0), ("c", 1.0)]


def test_one_rank_lets_errors_through_as_they_are():
    error = ValueError("no good")

    def check():
        raise error

    with pytest.raises(ValueError, match=r"^no good$") as caught, leaving_on_error(ALONE):
        check_on_all_ranks(check, ALONE)
    assert caught.value is error


def test_without_a_launcher_a_process_is_alone(launched):
    assert connect(None, CPU) is connect(False, CPU) is ALONE


def test_a_launcher_of_one_process_leaves_it_alone(launched):
    launched(WORLD_SIZE="1", RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT="1")
    assert connect(None, CPU) is ALONE


def test_who_wants_to_be_alone_is_so_under_a_launcher(launched):
    launched(WORLD_SIZE="2", RANK="1", MASTER_ADDR="127.0.0.1", MASTER_PORT="1")
    assert connect(False, CPU) is ALONE
    assert not dist.is_initialized()


@pytest.mark.parametrize(("distributed", "given", "missing"), [
    (True, (), "RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT is"),
    (True, ("RANK", "MASTER_ADDR"), "WORLD_SIZE, MASTER_PORT is"),
    (None, ("WORLD_SIZE", "RANK", "MASTER_ADDR"), "but MASTER_PORT is"),
])  # fmt: skip
def test_what_a_launcher_has_not_set_is_named(launched, distributed, given, missing):
    launched(**dict.fromkeys(given, "2"))
    with pytest.raises(ValueError, match=rf"{missing} missing\. Start the script with torchrun, .* give distributed=False"):
        connect(distributed, CPU)
    assert not dist.is_initialized()


def test_the_first_rank_keeps_the_seed_and_the_others_get_their_own():
    seeds = {seed_of_rank(seed, Fake(rank, 32)) for seed in range(100) for rank in range(32)}
    assert all(seed_of_rank(seed, Fake(0, 32)) == seed for seed in range(100))
    assert len(seeds) == 100 * 32
    assert seed_of_rank(None, Fake(3, 4)) is None


@given(st.integers(0, 2**32 - 1), st.integers(1, 10_000))
def test_a_derived_seed_suits_every_generator(seed, rank):
    derived = seed_of_rank(seed, Fake(rank, rank + 1))
    assert derived == seed_of_rank(seed, Fake(rank, rank + 5))
    assert 0 <= derived < 2**31
    np.random.RandomState(derived)
    gym.utils.seeding.np_random(derived)


@given(st.integers(1, 50), st.integers(0, 10_000))
def test_parts_are_even_and_add_up(size, more):
    parts = [steps_of_rank(size + more, Fake(rank, size)) for rank in range(size)]
    assert sum(parts) == size + more
    assert 1 <= min(parts) <= max(parts) <= min(parts) + 1


@given(st.integers(2, 50), st.data())
def test_too_little_for_all_is_refused(size, data):
    n = data.draw(st.integers(0, size - 1))
    with pytest.raises(ValueError, match=rf"n_steps is {n}, which {size} ranks share; it must be at least {size}\. Raise"):
        steps_of_rank(n, Fake(0, size))


@given(st.integers(1, 5000), st.lists(st.integers(1, 10_000), min_size=2, max_size=9))
def test_minibatches_are_shared_in_proportion(batch_size, numbers):
    shares = [shard_minibatches(batch_size, n, Fake(rank, len(numbers), numbers)) for rank, n in enumerate(numbers)]
    exact = [Fraction(batch_size * n, sum(numbers)) for n in numbers]
    assert all(0 <= size - part < 1 and size >= 1 for (size, *_), part in zip(shares, exact, strict=True))
    n_minibatches = [-(-n // size) for n, (size, *_) in zip(numbers, shares, strict=True)]
    assert [n_here for _, n_here, _ in shares] == n_minibatches
    assert {n_steps for *_, n_steps in shares} == {max(n_minibatches)}
    assert max(n_minibatches) <= -(-sum(numbers) // batch_size)


@given(st.integers(1, 10_000), st.integers(1, 10_000))
def test_one_rank_has_the_minibatches_asked_for(batch_size, n):
    assert shard_minibatches(batch_size, n, ALONE) is None


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_fingerprint_tells_one_flipped_bit(dtype):
    tensor = th.arange(6).to(dtype).reshape(2, 3)
    n_bits = 1 if dtype is th.bool else 8 * tensor.element_size()
    seen = {int(fingerprint([tensor]))}
    for place in range(6):
        for bit in range(n_bits):
            other = tensor.clone()
            bits = other.view(INTEGERS[tensor.element_size()]).view(-1)
            bits[place] ^= th.tensor(1, dtype=bits.dtype) << bit
            seen.add(int(fingerprint([other])))
            assert fingerprint([other]) != fingerprint([tensor])
    assert len(seen) > n_bits


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_fingerprint_tells_two_entries_that_change_places(dtype):
    one, other = th.zeros(2000, dtype=dtype), th.zeros(2000, dtype=dtype)
    one[3], other[1999] = 1, 1
    assert fingerprint([one]) != fingerprint([other])


@pytest.mark.parametrize("distance", [1, 2048])
@pytest.mark.parametrize("dtype", [th.float32, th.float64])
def test_a_fingerprint_tells_two_round_numbers_that_change_places(dtype, distance):
    one, other = th.zeros(3000, dtype=dtype), th.zeros(3000, dtype=dtype)
    one[0], one[distance], other[0], other[distance] = 1.0, 2.0, 2.0, 1.0
    assert fingerprint([one]) != fingerprint([other])


@pytest.mark.parametrize("dtype", [th.float32, th.float64])
def test_a_fingerprint_tells_two_zeros_of_unlike_signs_that_change_places(dtype):
    assert fingerprint([th.tensor([0.0, -0.0], dtype=dtype)]) != fingerprint([th.tensor([-0.0, 0.0], dtype=dtype)])


@pytest.mark.parametrize("dtype", [th.float32, th.float64, th.float16, th.bfloat16])
def test_a_fingerprint_goes_by_bits_not_by_values(dtype):
    assert fingerprint([th.tensor([0.0], dtype=dtype)]) != fingerprint([th.tensor([-0.0], dtype=dtype)])
    nan = th.tensor([1.0, float("nan")], dtype=dtype)
    assert fingerprint([nan]).equal(fingerprint([nan.clone()]))


def test_a_fingerprint_goes_by_places_not_by_memory():
    matrix = th.randn(4, 5)
    assert fingerprint([matrix.t()]).equal(fingerprint([matrix.t().contiguous()]))
    assert not fingerprint([matrix]).equal(fingerprint([matrix.t()]))


def test_a_fingerprint_has_a_number_for_each_tensor_of_any_shape():
    assert fingerprint([th.randn(4, 5), th.tensor(3.0), th.zeros(1, 2)]).shape == (3,)


def test_a_fingerprint_has_a_number_for_a_tensor_without_numbers():
    assert fingerprint([th.randn(4, 5), th.zeros(0)]).shape == (2,)


# ---------------------------------------------------------------------------------------------------- in real processes


def raised(task, *args):
    """Give the error's kind and text."""
    try:
        task(*args)
    except Exception as error:
        return type(error).__name__, str(error)
    return None


def numbers_of(rank, n):
    return th.from_numpy(np.random.default_rng(rank).standard_normal(n).astype(np.float32))


def summed(communicator, n, shape=(-1,)):
    """Give a sum's digest and its distance from numpy's."""
    own = numbers_of(communicator.rank, n).reshape(shape)
    before = own.clone()
    total = communicator.sum(own).double().numpy()
    exact = sum(numbers_of(rank, n).double().numpy() for rank in range(communicator.size)).reshape(shape)
    assert own.equal(before)
    return hashlib.sha256(total.tobytes()).hexdigest(), float(np.abs(total - exact).max())


def check(communicator, faulty, kind=ValueError):
    def fail():
        if communicator.rank in faulty:
            raise kind(f"bad {communicator.rank}")

    return raised(check_on_all_ranks, fail, communicator)


def tensors_of(rank):
    values = [th.full((3,), rank + 1).to(dtype) for dtype in DTYPES if dtype is not th.int16]  # not in gloo
    return [
        *values,
        th.tensor([rank == 0]),
        th.full((3, 4), rank + 0.5).t(),
        th.full((4, 6), rank + 0.5)[::2, ::3],
        th.tensor(rank),
    ]


def reduce_all(rank):
    communicator = connect(None, CPU)
    assert isinstance(communicator, DistributedCommunicator)
    few, many = SHORT // 4 // communicator.size, SHORT // 4 + 1
    copied = tensors_of(rank)
    communicator.broadcast(copied)
    own = dict.fromkeys("abcde", 1) | ({"b": 2, "d": 3} if rank == communicator.size - 1 else {})
    n_minibatches = 1 + 2 * rank
    return {
        "who": (communicator.rank, communicator.size, communicator.is_first),
        "sum": communicator.sum(th.tensor([rank, 10])).tolist(),
        "mean": communicator.mean(th.tensor([rank * (rank + 1.0), 3.0 * (rank + 1)]), rank + 1).tolist(),
        "stack": communicator.gather(th.tensor([[rank, 7]])).tolist(),
        "stack of bools": communicator.gather(th.tensor(rank == 1)).tolist(),
        "gather": communicator.gather_objects({"rank": rank, "long": "x" * 1000 * rank}),
        "of_first": communicator.broadcast_object([rank, None, "a"]),
        "copied": all(a.equal(b) and a.dtype == b.dtype for a, b in zip(copied, tensors_of(0), strict=True)),
        "few": summed(communicator, few),
        "many": summed(communicator, many),
        "in_step": [*weighted_minibatches(range(n_minibatches), MinibatchShard(4, n_minibatches, 2 * communicator.size - 1))],
        "too long": raised(lambda: [*weighted_minibatches(range(3), MinibatchShard(4, 2, 2))]),
        "too short": raised(lambda: [*weighted_minibatches(range(1), MinibatchShard(4, 2, 2))]),
        "empty": raised(lambda: [*weighted_minibatches((), MinibatchShard(4, 2, 2))]),
        "all well": check(communicator, []),
        "one bad": check(communicator, [1]),
        "two bad": check(communicator, [0, 1]),
        "alike": raised(require_same, dict.fromkeys("abc", 1.5), "settings", communicator),
        "unlike": raised(require_same, own, "settings", communicator),
        "lacking": raised(require_same, {"a": 1} if rank else {"a": 1, "gamma": None}, "settings", communicator),
        "seed": seed_of_rank(3, communicator),
        "again": connect(True, CPU).size,
    }


@pytest.fixture(scope="module", params=[2, 3])
def reduced(request):
    return in_ranks(request.param, reduce_all)


def test_every_rank_knows_who_it_is(reduced):
    assert [each["who"] for each in reduced] == [(rank, len(reduced), rank == 0) for rank in range(len(reduced))]
    assert len({each["seed"] for each in reduced}) == len(reduced)
    assert all(each["again"] == len(reduced) for each in reduced)


def test_every_rank_gets_what_all_have(reduced):
    size = len(reduced)
    for each in reduced:
        assert each["sum"] == [sum(range(size)), 10 * size]
        assert each["stack"] == [[[rank, 7]] for rank in range(size)]
        assert each["stack of bools"] == [rank == 1 for rank in range(size)]
        assert each["gather"] == [{"rank": rank, "long": "x" * 1000 * rank} for rank in range(size)]
        assert each["of_first"] == [0, None, "a"]
        assert each["copied"]


def test_a_mean_is_over_the_states_of_all(reduced):
    weights = np.arange(1, len(reduced) + 1)
    expected = [np.average(np.arange(len(reduced)), weights=weights), 3.0]
    assert all(each["mean"] == pytest.approx(expected, rel=1e-6) for each in reduced)


@pytest.mark.parametrize("amount", ["few", "many"])
def test_sums_are_right_and_the_same_bits_everywhere(reduced, amount):
    digests, errors = zip(*(each[amount] for each in reduced), strict=True)
    assert len(set(digests)) == 1
    assert max(errors) < 2e-6


def test_who_has_fewer_minibatches_repeats_the_last_without_weight(reduced):
    n_steps = 2 * len(reduced) - 1
    for rank, each in enumerate(reduced):
        own = [(index, 1.0) for index in range(1 + 2 * rank)]
        assert each["in_step"] == own + [(2 * rank, 0.0)] * (n_steps - len(own))


@pytest.mark.parametrize(("case", "n"), [("too long", 3), ("too short", 1), ("empty", 0)])
def test_another_number_of_minibatches_than_agreed_is_an_error(reduced, case, n):
    for each in reduced:
        kind, text = each[case]
        assert kind == "ValueError"
        assert text.startswith(f"The rollout buffer's get(4) gives {n} minibatches or more, but its size makes 2")


def test_what_is_wrong_on_one_rank_is_wrong_on_all(reduced):
    for each in reduced:
        assert each["all well"] is None
        assert each["one bad"] == ("ValueError", "rank 1: bad 1")
        assert each["two bad"] == ("ValueError", "rank 0: bad 0\nrank 1: bad 1")


def test_what_differs_is_named_with_the_rank(reduced):
    last = len(reduced) - 1
    for each in reduced:
        assert each["alike"] is None
        kind, text = each["unlike"]
        assert kind == "RanksPartedError"
        assert text.startswith(f"Ranks {last} of {len(reduced)} differ from rank 0 in settings: ")
        assert f"rank {last} in b (2, not 1), d (3, not 1)." in text


def test_what_a_rank_lacks_differs_though_it_is_none(reduced):
    assert all(each["lacking"][0] == "RanksPartedError" and "gamma" in each["lacking"][1] for each in reduced)


def use_own_group(rank):
    dist.init_process_group("gloo")
    communicator = connect(None, CPU)
    total = int(communicator.sum(th.tensor(rank + 1)))
    text = raised(raise_together, communicator)
    PROCESS_GROUP.leave()
    still_there = dist.is_initialized()
    again = int(communicator.sum(th.tensor(1)))
    dist.destroy_process_group()
    return total, text, still_there, again


def raise_together(communicator):
    with leaving_on_error(communicator):
        raise KeyError("oh")


def test_a_process_group_of_the_scripts_is_used_and_left_alone():
    assert in_ranks(2, use_own_group) == [(3, ("KeyError", "'oh'"), True, 2)] * 2


def come_and_go(rank):
    alone = connect(None, CPU) is ALONE
    communicator = connect(True, CPU)
    kind = type(communicator).__name__, communicator.size, int(communicator.sum(th.tensor(5)))
    PROCESS_GROUP.leave()
    PROCESS_GROUP.leave()
    return alone, kind, dist.is_initialized(), raised(connect, True, CPU)


def test_who_has_left_cannot_come_back():
    [(alone, kind, is_there, (error, text))] = in_ranks(1, come_and_go)
    assert alone
    assert kind == ("GlooCommunicator", 1, 5)
    assert not is_there
    assert error == "RuntimeError"
    assert "start the script again" in text


def raise_in(rank, culprit):
    communicator = connect(None, CPU)
    communicator.sum(th.tensor(0))
    try:
        with leaving_on_error(communicator):
            if rank == culprit:
                time.sleep(0.3)
                raise KeyError("the env broke")
            communicator.sum(th.tensor(1))
    finally:
        time.sleep(1.0 if culprit == rank == 0 else 0.0)  # it has the store; under torchrun the launcher has


@pytest.mark.parametrize(("size", "culprit"), [(2, 1), (3, 1), (2, 0)])
def test_who_waits_for_a_rank_that_raises_is_told_why(size, culprit):
    begin = time.monotonic()
    with pytest.raises(RankFailedError) as failed:
        in_ranks(size, raise_in, culprit)
    assert time.monotonic() - begin < 20
    texts = failed.value.texts
    assert texts[culprit].startswith("KeyError: 'the env broke'")
    waiting = [text for rank, text in enumerate(texts) if rank != culprit]
    assert all(text.startswith("RanksPartedError") and "has lost contact" in text for text in waiting)
    assert all(f"rank {culprit} ended with KeyError: 'the env broke'" in text for text in waiting)


def reduce_by_collectives(rank):
    """Take the way of other devices, which gloo can go too."""
    communicator = connect(None, CPU)
    plain = DistributedCommunicator(CPU, None)
    values = th.linspace(-1, 1, 7) * (rank + 1)
    pairs = [(each.gather(values), each.sum(values), each.mean(values, 2.0 + rank)) for each in (communicator, plain)]
    return [th.allclose(one, other, atol=1e-6) for one, other in zip(*pairs, strict=True)], pairs[1][1].numpy().tobytes()


def test_collectives_of_other_devices_give_the_same():
    results = in_ranks(3, reduce_by_collectives)
    assert all(all(alike) for alike, _ in results)
    assert len({of_rank for _, of_rank in results}) == 1


def test_ranks_meet_anew_in_a_store_that_still_knows_the_dead():
    store, words = dist.HashStore(), []
    for _ in range(3):
        with ThreadPoolExecutor(3) as pool:
            (word,) = {*pool.map(lambda rank: meet(store, rank, 3), range(3))}
        words.append(word)
    assert len({*words}) == 3


PART = """
import weakref
import torch.distributed as dist
from sb3_trpo import TRPO
from sb3_trpo.parallel.launcher import PROCESS_GROUP

TRPO("MlpPolicy", "CartPole-v1", n_steps=8, batch_size=8, distributed=True).learn(8)
group = weakref.ref(dist.group.WORLD)
assert group() is not None
PROCESS_GROUP.leave()
assert group() is None, "something keeps the process group"
"""


def test_nothing_keeps_the_process_group_after_the_end():
    """Else gloo's threads outlive the interpreter, and now and then abort the process."""
    # a process of its own: whether the group is kept depends on what is imported before it is made
    variables = os.environ | ranks.launched(0, 1, free_port())
    result = subprocess.run(
        [sys.executable, "-c", PART], env=variables, capture_output=True, text=True, timeout=120, check=False
    )
    assert result.returncode == 0, result.stderr
