"""Affine maps: convolutions of any geometry are torch's; dense layers of any shape are tried in ``test_stack.py``."""

import pytest
import torch as th
from helpers.stacks import FUNCTIONS, TOLERANCES, check, with_functions
from hypothesis import given, strategies as st
from torch import nn

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
