"""Prepared products: they are those of the stack, as often as they are asked for, and for several batches in turn."""

import pytest
import torch as th
from helpers.stacks import FUNCTIONS, close, mlp, read_stack
from hypothesis import given, strategies as st

from sb3_trpo.networks.affine import NARROW
from sb3_trpo.networks.prepared.products import PreparedProducts, Workspace


class Case:
    """A stack, tensors for v and J^T u, and its products at some batches."""

    def __init__(self, widths, names, bias=True, n_rows=6, n_batches=1):
        self.stack = read_stack(mlp(widths, names, bias))
        self.v, self.out = ([th.full_like(tensor, th.nan) for tensor in self.stack.tensors] for _ in range(2))
        workspace = Workspace(self.stack, n_rows)
        self.batches = []
        with th.no_grad():
            for _ in range(n_batches):
                x = th.randn(n_rows, widths[0], dtype=th.float64)
                kept = self.stack.forward(x)
                self.batches.append((x, kept, PreparedProducts(self.stack, x, kept, self.v, self.out, workspace)))

    @th.no_grad()
    def check(self):
        for x, kept, prepared in self.batches:
            for tensor in self.v:
                tensor.normal_()
            d_output = prepared.jvp()
            close(d_output, self.stack.jvp(x, kept, self.v))
            u = th.randn_like(d_output)
            before, expected = u.clone(), [th.empty_like(tensor) for tensor in self.out]
            prepared.vjp(u)
            self.stack.vjp(x, kept, u, expected)
            for ours, theirs in zip(self.out, expected, strict=True):
                close(ours, theirs)
            assert th.equal(u, before)


@given(
    widths=st.lists(st.sampled_from([1, 2, 5, NARROW, NARROW + 9]), min_size=2, max_size=4),
    names=st.lists(st.sampled_from(list(FUNCTIONS)), min_size=3, max_size=3),
    bias=st.booleans(),
    n_rows=st.integers(1, 7),
    seed=st.integers(0, 2**31),
)
def test_products_are_those_of_the_stack(widths, names, bias, n_rows, seed):
    th.manual_seed(seed)
    case = Case(widths, names[: len(widths) - 1], bias, n_rows, n_batches=2)
    for _ in range(2):  # batches in turn share buffers
        case.check()


@pytest.mark.parametrize("name", ["none", "tanh"])
def test_a_result_stays_as_it_is(name):
    th.manual_seed(0)
    case = Case([3, 30, 2], ["tanh", name])
    ((_, _, prepared),) = case.batches
    with th.no_grad():
        for tensor in case.v:
            tensor.normal_()
        first = prepared.jvp()
        before = first.clone()
        prepared.vjp(th.ones_like(first))
        for tensor in case.v:
            tensor.normal_()
        prepared.jvp()
    assert th.equal(first, before)
