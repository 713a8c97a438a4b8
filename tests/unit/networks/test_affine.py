"""Affine maps: convolutions of any geometry are torch's; dense layers of any shape are tried in ``test_stack.py``."""

import pytest
import torch as th
from helpers.stacks import FUNCTIONS, TOLERANCES, check, with_functions
from hypothesis import given, strategies as st
from torch import nn

dtypes = st.sampled_from(list(TOLERANCES))
functions = st.sampled_from(list(FUNCTIONS))
seeds = st.integers(0, 2**31)


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
