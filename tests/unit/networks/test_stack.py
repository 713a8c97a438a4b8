"""A stack of layers: its values, J v and J^T u are those of torch's modules under autograd."""

from itertools import pairwise

import torch as th
from helpers.stacks import FUNCTIONS, TOLERANCES, check, close, mlp, read_stack, with_functions
from hypothesis import given, strategies as st
from torch import nn

dtypes = st.sampled_from(list(TOLERANCES))
functions = st.sampled_from(list(FUNCTIONS))
seeds = st.integers(0, 2**31)


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


def test_one_tensor_may_serve_two_layers_of_the_forward_pass():
    shared = nn.Linear(3, 3, dtype=th.float64)
    modules, x = nn.Sequential(shared, nn.Tanh(), shared), th.randn(5, 3, dtype=th.float64)
    with th.no_grad():
        close(read_stack(modules)(x), modules(x))


def test_other_tensors_make_another_stack_of_the_same_kind():
    th.manual_seed(0)
    one, other = (mlp([3, 4, 2], ["elu-0.5", "none"]) for _ in range(2))
    stack, x = read_stack(one), th.randn(5, 3, dtype=th.float64)
    moved = stack.with_tensors(list(other.parameters()))
    with th.no_grad():
        close(moved(x), other(x))
        close(stack(x), one(x))


def test_a_stack_with_a_convolution_is_not_dense():
    dense, image = mlp([3, 2], ["none"]), nn.Sequential(nn.Conv2d(1, 1, 1), nn.Flatten(), nn.Linear(4, 1))
    assert read_stack(dense).is_dense
    assert not read_stack(image).is_dense


def test_a_stack_counts_its_outputs_and_passes_only_the_last_input_on():
    modules = mlp([3, 5, 4, 2], ["tanh", "relu", "none"])
    stack, x = read_stack(modules), th.randn(6, 3, dtype=th.float64)
    longer = stack.with_last_input()
    assert (stack.n_outputs, longer.n_outputs) == (2, 2 + 4)
    assert (stack.is_dense, longer.is_dense) == (True, False)
    assert all(ours is theirs for ours, theirs in zip(longer.tensors, stack.tensors, strict=True))
    with th.no_grad():
        assert th.equal(longer(x), th.cat([modules(x), modules[:-1](x)], dim=1))
    convolution = read_stack(nn.Sequential(nn.Conv2d(2, 3, 1)))
    assert convolution.n_outputs == 3


def test_the_cotangent_of_the_features_is_autograds():
    th.manual_seed(0)
    modules, x = mlp([3, 4, 2], ["elu-0.5", "tanh"]), th.randn(5, 3, dtype=th.float64, requires_grad=True)
    stack, u = read_stack(modules), th.randn(5, 2, dtype=th.float64)
    (expected,) = th.autograd.grad(modules(x), x, u)
    with th.no_grad():
        delta = stack.vjp(x, stack.forward(x), u, [th.empty_like(tensor) for tensor in stack.tensors])
        close(stack.vjp_features(x, delta), expected)
