import pytest
import torch as th
from helpers.ranks import in_threads

from sb3_trpo.parallel.communicator import ALONE
from sb3_trpo.parallel.consistency import INTEGERS, checksums, require_same, require_same_parameters, shapes_of
from sb3_trpo.parallel.faults import RanksPartedError

DTYPES = (th.float32, th.float64, th.float16, th.bfloat16, th.int64, th.int32, th.int16, th.int8, th.uint8, th.bool)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_checksum_changes_with_every_single_bit(dtype):
    tensor = th.arange(6).to(dtype).reshape(2, 3)
    n_bits = 1 if dtype is th.bool else 8 * tensor.element_size()
    seen = {int(checksums([tensor]))}
    for place in range(6):
        for bit in range(n_bits):
            other = tensor.clone()
            bits = other.view(INTEGERS[tensor.element_size()]).view(-1)
            bits[place] ^= th.tensor(1, dtype=bits.dtype) << bit
            seen.add(int(checksums([other])))
            assert checksums([other]) != checksums([tensor])
    assert len(seen) > n_bits


SWAPS = [(dtype, (0, 1), (3, 1999)) for dtype in DTYPES]
SWAPS += [(dtype, (1, 2), places) for dtype in DTYPES if dtype is not th.bool for places in ((0, 1), (0, 2048))]
SWAPS += [(dtype, (0.0, -0.0), (0, 1)) for dtype in DTYPES if dtype.is_floating_point]


@pytest.mark.parametrize(("dtype", "values", "places"), SWAPS)
def test_a_checksum_changes_if_two_values_change_places(dtype, values, places):
    one, other = th.zeros(3000, dtype=dtype), th.zeros(3000, dtype=dtype)
    one[[*places]] = th.tensor(values).to(dtype)
    other[[*places]] = th.tensor(values[::-1]).to(dtype)
    assert checksums([one]) != checksums([other])


@pytest.mark.parametrize("dtype", [th.float32, th.float64, th.float16, th.bfloat16])
def test_a_checksum_is_of_bits_and_not_of_values(dtype):
    assert checksums([th.tensor([0.0], dtype=dtype)]) != checksums([th.tensor([-0.0], dtype=dtype)])
    nan = th.tensor([1.0, float("nan")], dtype=dtype)
    assert checksums([nan]).equal(checksums([nan.clone()]))


def test_each_tensor_has_a_checksum_that_does_not_depend_on_its_memory_layout():
    matrix = th.randn(4, 5)
    assert checksums([matrix.t()]).equal(checksums([matrix.t().contiguous()]))
    assert not checksums([matrix]).equal(checksums([matrix.t()]))
    assert checksums([matrix, th.tensor(3.0), th.zeros(1, 2), th.zeros(0)]).shape == (4,)


def error_of(check, *args):
    with pytest.raises(RanksPartedError) as raised:
        check(*args)
    return str(raised.value)


def test_values_that_differ_are_named_with_their_ranks():
    require_same({"a": 1}, "settings", ALONE)

    def compare(communicator):
        require_same(dict.fromkeys("abc", 1.5), "settings", communicator)
        own = dict.fromkeys("abcde", 1) | ({"b": 2, "d": 3} if communicator.rank > 0 else {})
        lacking = error_of(require_same, {} if communicator.rank else {"gamma": None}, "settings", communicator)
        assert "rank 1 in gamma" in lacking
        return error_of(require_same, own, "settings", communicator)

    for text in in_threads(3, compare):
        assert text.startswith("Ranks 1, 2 of 3 differ from rank 0 in settings: rank 1 in b (2, not 1), d (3, not 1).")


def linear(bias=0.0):
    module = th.nn.Linear(2, 1)
    th.nn.init.constant_(module.weight, 1.0)
    th.nn.init.constant_(module.bias, bias)
    return module


def test_parameters_that_differ_in_a_bit_are_named():
    def compare(communicator):
        require_same_parameters(linear(), communicator)
        return error_of(require_same_parameters, linear(-0.0 if communicator.rank else 0.0), communicator)

    for text in in_threads(2, compare):
        assert text.startswith("Ranks 1 of 2 differ from rank 0 in parameters: rank 1 in bias (")


def test_shapes_are_those_of_parameters_and_buffers():
    module = th.nn.Sequential(linear(), th.nn.BatchNorm1d(1, affine=False))
    assert shapes_of(module) == {
        "0.weight": [1, 2],
        "0.bias": [1],
        "1.running_mean": [1],
        "1.running_var": [1],
        "1.num_batches_tracked": [],
    }
