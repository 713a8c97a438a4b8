"""Affine maps: convolutions and layers that pass their input on are torch's; for dense layers, see ``test_stack.py``."""

from functools import partial

import pytest
import torch as th
from helpers.stacks import FUNCTIONS, TOLERANCES, PassesLastInput, check, close, mlp, read_stack, with_functions
from hypothesis import given, strategies as st
from torch import nn

from sb3_trpo.networks.affine import WithInput
from sb3_trpo.networks.stack import Stack

dtypes = st.sampled_from(list(TOLERANCES))
functions = st.sampled_from(list(FUNCTIONS))
seeds = st.integers(0, 2**31)


def image_stack(geometries, names, bias, dtype) -> tuple[nn.Sequential, tuple[int, ...]]:
    """Two convolutions and a dense layer, and the shape of an image for them."""
    convolutions = [
        nn.Conv2d(n_inputs, n_outputs, **geometry, bias=bias, dtype=dtype)
        for n_inputs, n_outputs, geometry in zip((2, 4), (4, 2), geometries, strict=True)
    ]
    below, shape = with_functions(convolutions, names[:2]), (2, 12, 11)
    n_features = below(th.zeros(1, *shape, dtype=dtype)).numel()
    head = with_functions([nn.Linear(n_features, 3, bias=bias, dtype=dtype)], names[2:])
    return nn.Sequential(*below, nn.Flatten(), *head), shape


def pairs(smallest, largest):
    return st.tuples(*[st.integers(smallest, largest)] * 2)


def geometries(largest_kernel, largest_padding):
    return st.fixed_dictionaries(
        {
            "kernel_size": pairs(1, largest_kernel),
            "stride": pairs(1, 2),
            "padding": pairs(0, largest_padding),
            "dilation": pairs(1, 2),
            "groups": st.sampled_from([1, 2]),
        }
    )


@pytest.mark.parametrize("layout", [th.contiguous_format, th.channels_last], ids=str)
@given(
    shapes=st.tuples(geometries(3, 2), geometries(2, 1)),
    names=st.lists(functions, min_size=3, max_size=3),
    bias=st.booleans(),
    n_rows=st.integers(1, 5),
    dtype=dtypes,
    seed=seeds,
)
def test_convolutions_of_any_geometry_are_torchs(layout, shapes, names, bias, n_rows, dtype, seed):
    th.manual_seed(seed)
    modules, shape = image_stack(shapes, names, bias, dtype)
    check(modules, th.randn(n_rows, *shape, dtype=dtype).contiguous(memory_format=layout))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_stack_may_end_with_a_convolution(name):
    th.manual_seed(0)
    check(with_functions([nn.Conv2d(2, 3, 3, 2, 1, dtype=th.float64)], [name]), th.randn(4, 2, 6, 5, dtype=th.float64))


def passing_input(modules: nn.Sequential) -> tuple[PassesLastInput, Stack]:
    return PassesLastInput(modules), read_stack(modules).with_last_input()


@given(
    widths=st.lists(st.sampled_from([1, 2, 3, 5, 24]), min_size=2, max_size=4),
    names=st.lists(functions, min_size=2, max_size=2),
    bias=st.booleans(),
    n_rows=st.integers(1, 9),
    dtype=dtypes,
    seed=seeds,
)
def test_a_stack_that_passes_the_input_of_its_last_layer_on_is_torchs(widths, names, bias, n_rows, dtype, seed):
    th.manual_seed(seed)
    modules, stack = passing_input(mlp(widths, [*names[: len(widths) - 2], "none"], bias, dtype))
    check(modules, th.randn(n_rows, widths[0], dtype=dtype), stack)


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("layout", [th.contiguous_format, th.channels_last], ids=str)
def test_the_input_that_is_passed_on_may_come_from_a_convolution(layout, name):
    th.manual_seed(0)
    convolution = with_functions([nn.Conv2d(2, 3, 3, 2, dtype=th.float64)], [name])
    modules, stack = passing_input(nn.Sequential(*convolution, nn.Flatten(), nn.Linear(12, 2, dtype=th.float64)))
    check(modules, th.randn(4, 2, 6, 5, dtype=th.float64).contiguous(memory_format=layout), stack)


def test_each_derivative_of_a_layer_that_passes_its_input_on_is_autograds():
    """One by one: in a stack, the errors of two might cancel."""
    th.manual_seed(0)
    draw = partial(th.randn, dtype=th.float64)
    x, w, b, d_x, d_w, d_b, delta = draw(5, 4), draw(3, 4), draw(3), draw(5, 4), draw(3, 4), draw(3), draw(5, 7)
    layer, pullback = WithInput(), th.func.vjp(lambda x, w, b: th.cat([x @ w.t() + b, x], 1), x, w, b)[1]
    zeros = th.zeros(5, 4, dtype=th.float64)
    close(layer(x, w, b), th.cat([x @ w.t() + b, x], 1))
    close(layer.product(x, d_w, d_b), th.cat([x @ d_w.t() + d_b, zeros], 1))
    close(layer.add(layer.product(x, d_w, None), d_x, w), th.cat([x @ d_w.t() + d_x @ w.t(), d_x], 1))
    of_w, of_b = th.full_like(w, th.nan), th.full_like(b, th.nan)
    layer.vjp_weight(delta, x, of_w)
    layer.vjp_bias(delta, of_b)
    for ours, theirs in zip((layer.vjp_input(delta, x, w), of_w, of_b), pullback(delta), strict=True):
        close(ours, theirs)
