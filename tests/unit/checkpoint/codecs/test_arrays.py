"""Arrays, tensors, modules and optimizers."""

import math

import numpy as np
import pytest
import torch as th
from helpers.codecs import HUGE, Thing, decode, encode, is_same, round_trip, sent

from sb3_trpo.checkpoint.codecs.arrays import NUMBERS
from sb3_trpo.checkpoint.codecs.codec import LIVE, Decoder, MismatchError
from sb3_trpo.checkpoint.codecs.inspection import qualified_name
from sb3_trpo.checkpoint.codecs.registry import CODECS

TORCH_DTYPES = [
    *(th.bool, th.uint8, th.int8, th.int16, th.int32, th.int64, th.uint16, th.uint32, th.uint64),
    *(th.float16, th.bfloat16, th.float32, th.float64),
]


LAYOUTS = {
    "plain": lambda a: a, "scalar": lambda a: a[0, 0], "empty": lambda a: a[:0], "negative strides": lambda a: a[::-1, ::2],
    "transposed": lambda a: a.T, "fortran": np.asfortranarray, "no columns": lambda a: a[:, :0],
    "broadcast": lambda a: np.broadcast_to(a[0], (5, 4)), "4-d": lambda a: a[None, ..., None],
    "0-d": lambda a: np.array(a[1, 1]),
}  # fmt: skip


@pytest.mark.parametrize("dtype", sorted(NUMBERS))
@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_array_of_any_dtype_and_layout_is_restored(dtype, layout):
    value = LAYOUTS[layout](np.random.default_rng(0).integers(0, 2**15, (3, 4)).astype(dtype))
    assert is_same(round_trip(value), value)
    assert is_same(round_trip(value, live=np.zeros(3)), value)


def test_a_transposed_array_keeps_its_layout_in_memory():
    value = np.arange(24.0).reshape(2, 3, 4)
    for layout in (value, value.T, value.transpose(1, 0, 2), np.asfortranarray(value)):
        assert round_trip(layout).strides == round_trip(th.from_numpy(layout)).numpy().strides == layout.strides
        assert is_same(round_trip(layout), layout)


@pytest.mark.parametrize("texts", [["a", "", "\u00fc\ud800"], [b"ab", b""], [["x", "yy"]] * 2, []], ids=repr)
def test_an_array_of_texts_is_restored(texts):
    value = np.array(texts) if texts else np.empty((0, 2), "<U3")
    assert is_same(round_trip(value), value)
    assert is_same(round_trip(value.T), value.T)


def test_a_view_stays_a_view_of_the_same_array():
    whole = np.arange(12.0).reshape(3, 4)
    value = {"whole": whole, "row": whole[1], "back": whole[::-1, ::2]}
    back = round_trip(value)
    assert is_same(back, value)
    back["row"][:] = -1
    assert back["whole"][1].tolist() == [-1] * 4
    assert back["back"][1].tolist() == [-1] * 2


def test_an_array_of_the_other_byte_order_keeps_its_values():
    assert round_trip(np.arange(-3, 3, dtype=">i4")).tolist() == [-3, -2, -1, 0, 1, 2]


def test_a_nan_in_an_array_keeps_its_bits():
    value = np.array([0x7FF8000000000123, 0xFFF0000000000001], np.uint64).view(np.float64)
    assert is_same(round_trip(value), value)


@pytest.mark.parametrize(
    "value",
    [
        *(np.array([None]), np.array([1j]), np.zeros(2, "M8[s]"), np.zeros(2, [("a", "i4")])),
        *(np.ma.array([1.0]), np.zeros(2).view(np.recarray), np.longdouble(1), np.datetime64("2020")),
    ],
    ids=lambda value: f"{type(value).__name__} {value.dtype}",
)
def test_an_array_that_safetensors_does_not_support_is_reported(value):
    node, encoder = encode([1, value])
    assert node == {"list": [1, LIVE]}
    assert encoder.unsupported == {"v/1": qualified_name(type(value))}
    assert not encoder.arrays


TENSOR_LAYOUTS = {
    "plain": lambda t: t, "0-d": lambda t: t[1, 2], "empty": lambda t: t[:0], "transposed": lambda t: t.T,
    "strided": lambda t: t[:, ::2], "expanded": lambda t: t[:1].expand(5, 4),
}  # fmt: skip


@pytest.mark.parametrize("dtype", TORCH_DTYPES, ids=str)
@pytest.mark.parametrize("layout", TENSOR_LAYOUTS)
def test_a_tensor_of_any_dtype_and_layout_is_restored(dtype, layout):
    value = TENSOR_LAYOUTS[layout](th.randint(0, 2**15, (3, 4), generator=th.Generator().manual_seed(0)).to(dtype))
    assert is_same(round_trip(value), value)


def test_a_tensor_that_requires_gradients_is_restored():
    assert round_trip(th.tensor([1.5, -0.0], requires_grad=True)).tolist() == [1.5, -0.0]


def test_a_tensor_that_numpy_does_not_support_is_reported():
    for part in (th.ones(3).to(th.float8_e4m3fn), th.eye(3).to_sparse()):
        _, encoder = encode(Thing(part=part))
        assert encoder.unsupported == {"v/part": "torch.Tensor"}


def small_network(seed, dtype=th.float32):
    th.manual_seed(seed)
    layers = th.nn.Linear(3, 4), th.nn.BatchNorm1d(4), th.nn.Tanh(), th.nn.Linear(4, 2)
    return th.nn.Sequential(*layers).to(dtype)


def train(network, optimizer, n_steps):
    dtype = next(network.parameters()).dtype
    for step in range(n_steps):
        optimizer.zero_grad()
        network(th.linspace(-1, 1, 24, dtype=dtype).reshape(8, 3) * (step + 1)).square().mean().backward()
        optimizer.step()


def weights_of(network):
    return {name: value.double().tolist() for name, value in network.state_dict().items()}


OPTIMIZERS = {
    "Adam": th.optim.Adam, "AMSGrad": lambda p: th.optim.AdamW(p, amsgrad=True),
    "SGD": lambda p: th.optim.SGD(p, lr=0.1, momentum=0.9), "RMSprop": th.optim.RMSprop,
}  # fmt: skip


@pytest.mark.parametrize("dtype", [th.float32, th.float64, th.bfloat16], ids=str)
@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_a_network_and_its_optimizer_continue_bit_for_bit(dtype, make):
    network, other = small_network(1, dtype), small_network(2, dtype)
    optimizer, other_optimizer = make(network.parameters()), make(other.parameters())
    train(network, optimizer, 3)
    parameters = [*other.parameters()]
    assert round_trip(network, other) is other
    assert round_trip(optimizer, other_optimizer) is other_optimizer
    assert weights_of(other) == weights_of(network)
    train(network, optimizer, 3)
    train(other, other_optimizer, 3)
    assert weights_of(other) == weights_of(network)
    assert all(a is b for a, b in zip(parameters, other.parameters(), strict=True))


def test_the_learning_rate_of_an_optimizer_is_restored():
    optimizer, other = (th.optim.Adam(th.nn.Linear(1, 1).parameters(), lr=lr) for lr in (0.1 + 0.2, 1.0))
    round_trip(optimizer, other)
    assert other.param_groups[0]["lr"] == 0.1 + 0.2


@pytest.mark.parametrize("live", [th.nn.Linear(2, 3), th.nn.Linear(2, 2, bias=False), None], ids=repr)
def test_a_network_of_another_shape_is_refused(live):
    with pytest.raises(MismatchError):
        round_trip(th.nn.Linear(2, 2), live)


def test_a_restored_array_has_its_own_memory():
    node, arrays = sent(Thing(a=np.zeros(2), t=th.zeros(2), w=np.zeros(2)))
    one, two = Thing(), Thing()
    Decoder(CODECS, arrays).decode(node, one, "v")
    one.a += 1
    one.t += 1
    Decoder(CODECS, arrays).decode(node, two, "v")
    assert two.a.tolist() == two.t.tolist() == [0, 0]


def test_an_array_on_foreign_memory_is_filled_in_place_or_refused():
    memory = bytearray(16)
    live = np.frombuffer(memory, np.float64)
    for value in (np.zeros(3), np.zeros((2, 1)), np.zeros(2, np.float32)):
        with pytest.raises(MismatchError):
            round_trip(value, live)
    assert round_trip(np.array([1.5, 2.5]), live) is live
    assert np.frombuffer(bytes(memory), np.float64).tolist() == [1.5, 2.5]


def test_a_read_only_array_is_replaced():
    live = np.frombuffer(b"abcd", np.uint8)
    assert round_trip(np.array([1, 2, 3, 4], np.uint8), live).tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize(
    "strides",
    [[-4], [8], [4, 4], [], [2**62], [HUGE], [-HUGE], ["4"], [None], [4.5], 4, None, "4", {}, [[4]], [math.nan], [5]],
    ids=lambda strides: repr(strides)[:9],
)
@pytest.mark.parametrize("kind", ["array", "tensor"])
def test_strides_beyond_an_arrays_memory_are_refused(kind, strides):
    with pytest.raises(MismatchError):
        decode({kind: ["a", strides], "dtype": "float32"}, a=np.zeros(3, np.float32))


BEYOND = {
    "offset": [10**9, -4, 4, HUGE, None],
    "shape": [[4], [-1], [2**62], None, [3, 1]],
    "strides": [[8], [-4], [], [HUGE]],
    "dtype": ["float64", "O", "object", None],
    "view": [5, None],
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in BEYOND.items() for value in values])
def test_a_view_beyond_its_owner_is_refused(key, value):
    node = {"view": {"array": "a"}, "dtype": "float32", "shape": [3], "strides": [4], "offset": 0}
    assert decode(node, a=np.arange(3, dtype=np.float32)).tolist() == [0, 1, 2]
    with pytest.raises(MismatchError):
        decode(node | {key: value}, a=np.arange(3, dtype=np.float32))


TOO_MANY = [("dtype", "O"), ("dtype", "<U9"), ("dtype", None), ("shape", [9]), ("shape", [-9]), ("shape", [HUGE])]


@pytest.mark.parametrize(("key", "value"), [*TOO_MANY, ("text_array", "b")])
def test_an_array_of_texts_beyond_its_bytes_is_refused(key, value):
    with pytest.raises(MismatchError):
        decode({"text_array": "a", "dtype": "<U1", "shape": [3]} | {key: value}, a=np.zeros(12, np.uint8))
