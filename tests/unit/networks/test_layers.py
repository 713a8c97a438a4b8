"""A stack of layers: its values, J v and J^T u are those of torch's modules under autograd."""

from functools import partial
from itertools import pairwise

import pytest
import torch as th
from hypothesis import given, strategies as st
from torch import nn

from sb3_trpo.networks.layers import ACTIVATIONS
from sb3_trpo.networks.plain_network import _read_stack

FUNCTIONS = {
    "none": None,
    "identity": nn.Identity,
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "relu-inplace": partial(nn.ReLU, inplace=True),
    "elu": nn.ELU,
    "elu-0.5": partial(nn.ELU, alpha=0.5),
    "elu-inplace": partial(nn.ELU, alpha=2.0, inplace=True),
    "leaky-relu": nn.LeakyReLU,
    "leaky-relu-0.2": partial(nn.LeakyReLU, 0.2),
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "gelu-tanh": partial(nn.GELU, "tanh"),
}
TOLERANCES = {th.float64: 1e-12, th.float32: 1e-5}
dtypes = st.sampled_from(list(TOLERANCES))
functions = st.sampled_from(list(FUNCTIONS))
seeds = st.integers(0, 2**31)


def with_functions(affine, names) -> nn.Sequential:
    """Put an activation after each affine module."""
    pairs = [(module, FUNCTIONS[name] and FUNCTIONS[name]()) for module, name in zip(affine, names, strict=True)]
    return nn.Sequential(*(module for pair in pairs for module in pair if module is not None))


def mlp(widths, names, bias=True, dtype=th.float64) -> nn.Sequential:
    return with_functions([nn.Linear(*sizes, bias=bias, dtype=dtype) for sizes in pairwise(widths)], names)


def close(actual, expected):
    tolerance = TOLERANCES[expected.dtype]
    th.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance * max(1.0, float(expected.abs().max())))


def inner(left, right) -> th.Tensor:
    return sum((a.double() * b.double()).sum() for a, b in zip(left, right, strict=True))


def check(modules: nn.Sequential, x: th.Tensor) -> None:
    """Compare every pass of the stack with torch's."""
    names, tensors = zip(*modules.named_parameters(), strict=True)
    stack, features = _read_stack(modules), x.clone()
    assert all(left is right for left, right in zip(stack.tensors, tensors, strict=True))

    def function(*values):
        return th.func.functional_call(modules, dict(zip(names, values, strict=True)), (x,))

    v = [th.randn_like(tensor) for tensor in tensors]
    h, jv = th.func.jvp(function, tuple(tensor.detach() for tensor in tensors), tuple(v))
    u = th.randn_like(h)
    jtu, out = th.autograd.grad(modules(x), tensors, u), [th.full_like(tensor, th.nan) for tensor in tensors]
    cotangent = u.clone()
    with th.no_grad():
        close(stack(x), h)
        tape = stack.record(x)
        close(tape.output, h)
        pushed = stack.push(x, tape, v)
        stack.pull(x, tape, u, out)
        close(stack.push(x, tape, v), jv)  # neither pass spoils the tape
    close(pushed, jv)
    for actual, expected in zip(out, jtu, strict=True):
        close(actual, expected)
    scale = float(pushed.norm() * u.norm()) + 1.0
    assert float(inner([u], [pushed]) - inner(out, v)) == pytest.approx(0.0, abs=10 * TOLERANCES[x.dtype] * scale)
    assert th.equal(x, features)
    assert th.equal(u, cotangent)


def test_the_activations_tried_are_all_there_are():
    tried = {type(make()) for make in FUNCTIONS.values() if make is not None}
    assert tried == set(ACTIVATIONS)


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_activation_is_torchs_in_all_passes(name, bias, dtype):
    th.manual_seed(0)
    check(mlp([3, 7, 4, 2], [name] * 3, bias, dtype), 3.0 * th.randn(9, 3, dtype=dtype))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_activation_is_torchs_at_zero_and_far_out(name):
    modules = mlp([1, 1], [name])
    with th.no_grad():
        modules[0].weight.fill_(1.0)
        modules[0].bias.zero_()
    check(modules, th.tensor([0.0, -0.0, 1e-300, -1e-300, 40.0, -40.0, 1e3, -1e3], dtype=th.float64)[:, None])


@given(
    widths=st.lists(st.integers(1, 6), min_size=2, max_size=5),
    names=st.lists(functions, min_size=4, max_size=4),
    biases=st.lists(st.booleans(), min_size=4, max_size=4),
    n_rows=st.integers(1, 9),
    dtype=dtypes,
    seed=seeds,
)
def test_dense_stacks_of_any_shape_are_torchs(widths, names, biases, n_rows, dtype, seed):
    th.manual_seed(seed)
    affine = [nn.Linear(*sizes, bias=bias, dtype=dtype) for sizes, bias in zip(pairwise(widths), biases, strict=False)]
    check(with_functions(affine, names[: len(affine)]), th.randn(n_rows, widths[0], dtype=dtype))


def image_stack(first: dict, second: dict, names, bias, dtype) -> tuple[nn.Sequential, tuple[int, ...]]:
    """Two convolutions and a dense layer, and the shape of an image for them."""
    convolutions = [
        nn.Conv2d(
            2, 4, first["kernel"], *(first[key] for key in ("stride", "padding", "dilation", "groups")), bias, dtype=dtype
        ),
        nn.Conv2d(
            4, 2, second["kernel"], *(second[key] for key in ("stride", "padding", "dilation", "groups")), bias, dtype=dtype
        ),
    ]
    below = with_functions(convolutions, names[:2])
    shape = (2, 12, 11)
    n_features = below(th.zeros(1, *shape, dtype=dtype)).numel()
    head = with_functions([nn.Linear(n_features, 3, bias=bias, dtype=dtype)], names[2:])
    return nn.Sequential(*below, nn.Flatten(), *head), shape


sizes = st.tuples(st.integers(1, 3), st.integers(1, 3))


@pytest.mark.parametrize("layout", [th.contiguous_format, th.channels_last], ids=str)
@given(
    first=st.fixed_dictionaries(
        {
            "kernel": sizes,
            "stride": st.tuples(st.integers(1, 2), st.integers(1, 2)),
            "padding": st.tuples(st.integers(0, 2), st.integers(0, 2)),
            "dilation": st.tuples(st.integers(1, 2), st.integers(1, 2)),
            "groups": st.sampled_from([1, 2]),
        }
    ),
    second=st.fixed_dictionaries(
        {
            "kernel": st.tuples(st.integers(1, 2), st.integers(1, 2)),
            "stride": st.tuples(st.integers(1, 2), st.integers(1, 2)),
            "padding": st.integers(0, 1),
            "dilation": st.tuples(st.integers(1, 2), st.integers(1, 2)),
            "groups": st.sampled_from([1, 2]),
        }
    ),
    names=st.lists(functions, min_size=3, max_size=3),
    bias=st.booleans(),
    n_rows=st.integers(1, 5),
    dtype=dtypes,
    seed=seeds,
)
def test_convolutions_of_any_geometry_are_torchs(layout, first, second, names, bias, n_rows, dtype, seed):
    th.manual_seed(seed)
    modules, shape = image_stack(first, second, names, bias, dtype)
    check(modules, th.randn(n_rows, *shape, dtype=dtype).contiguous(memory_format=layout))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_stack_may_end_with_a_convolution(name):
    th.manual_seed(0)
    check(with_functions([nn.Conv2d(2, 3, 3, 2, 1, dtype=th.float64)], [name]), th.randn(4, 2, 6, 5, dtype=th.float64))


def test_one_tensor_may_serve_two_layers_of_the_forward_pass():
    shared = nn.Linear(3, 3, dtype=th.float64)
    modules, x = nn.Sequential(shared, nn.Tanh(), shared), th.randn(5, 3, dtype=th.float64)
    with th.no_grad():
        close(_read_stack(modules)(x), modules(x))


def test_other_tensors_make_another_stack_of_the_same_kind():
    th.manual_seed(0)
    one, other = (mlp([3, 4, 2], ["elu-0.5", "none"]) for _ in range(2))
    stack, x = _read_stack(one), th.randn(5, 3, dtype=th.float64)
    moved = stack.with_tensors(list(other.parameters()))
    with th.no_grad():
        close(moved(x), other(x))
        close(stack(x), one(x))


def test_a_stack_with_a_convolution_is_not_dense():
    dense, image = mlp([3, 2], ["none"]), nn.Sequential(nn.Conv2d(1, 1, 1), nn.Flatten(), nn.Linear(4, 1))
    assert _read_stack(dense).is_dense
    assert not _read_stack(image).is_dense


@pytest.mark.parametrize(
    "modules",
    [
        [nn.Linear(2, 2), nn.Tanh(), nn.Tanh()],
        [nn.Tanh(), nn.Linear(2, 2)],
        [nn.Linear(2, 2), nn.Flatten()],
        [nn.Linear(2, 2), nn.Softplus()],
        [nn.Conv2d(1, 1, 1, padding="same")],
        [nn.Conv2d(1, 1, 1, padding_mode="reflect")],
        [nn.Linear(2, 2), nn.Dropout(0.0)],
    ],
    ids=repr,
)
def test_what_is_not_a_plain_stack_is_not_read(modules):
    assert _read_stack(modules) is None


def test_a_stack_that_begins_with_flatten_does_not_break_the_reading():
    x = th.randn(4, 2)
    modules = nn.Sequential(nn.Flatten(), nn.Linear(2, 2))
    stack = _read_stack(modules)
    with th.no_grad():
        assert stack is None or th.allclose(stack(x), modules(x))


def test_a_flatten_of_other_dimensions_is_read_as_what_it_is():
    x, modules = th.randn(2, 1, 2, 2), nn.Sequential(nn.Conv2d(1, 1, 1), nn.Flatten(2), nn.Linear(4, 1))
    stack = _read_stack(modules)
    with th.no_grad():
        assert stack is None or stack(x).shape == modules(x).shape
