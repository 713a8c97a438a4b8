import pytest
import torch as th
from helpers.oracle import interrupt_at
from hypothesis import given, strategies as st
from hypothesis.extra import numpy as hnp

from sb3_trpo.numerics.flat import assign, flatten, unflatten

SHAPES = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)
ARRAYS = st.sampled_from(["float32", "float64"]).flatmap(
    lambda dtype: st.lists(hnp.arrays(dtype, SHAPES), min_size=1, max_size=5)
)
BITS = {th.float32: th.int32, th.float64: th.int64}


@given(ARRAYS)
def test_unflatten_inverts_flatten(arrays):
    tensors = [th.as_tensor(array) for array in arrays]
    flat = flatten(tensors)
    assert flat.shape == (sum(tensor.numel() for tensor in tensors),)
    for piece, tensor in zip(unflatten(flat, tensors), tensors, strict=True):
        assert piece.shape == tensor.shape
        assert th.equal(piece.view(BITS[tensor.dtype]), tensor.view(BITS[tensor.dtype]))


def test_flatten_joins_in_row_major_order():
    matrix = th.tensor([[1.0, 3.0], [2.0, 4.0]]).T
    assert flatten([matrix, th.tensor(5.0)]).tolist() == [1.0, 2.0, 3.0, 4.0, 5.0]


def test_flatten_is_differentiable():
    first, second = th.ones(2, requires_grad=True), th.ones((1, 2), requires_grad=True)
    flatten([first, second]).dot(th.arange(4.0)).backward()
    assert first.grad.tolist() == [0.0, 1.0]
    assert second.grad.tolist() == [[2.0, 3.0]]


def test_unflatten_gives_views():
    vector = th.arange(3.0)
    unflatten(vector, [th.empty(1), th.empty(2)])[1].fill_(7.0)
    assert vector.tolist() == [0.0, 7.0, 7.0]


@pytest.mark.parametrize("size", [2, 4])
def test_unflatten_refuses_sizes_that_do_not_add_up(size):
    with pytest.raises(RuntimeError, match="split"):
        unflatten(th.zeros(size), [th.zeros(1), th.zeros(2)])


def test_assign_writes_into_the_storage_that_optimizers_and_tied_modules_hold():
    source = th.arange(6.0).view(2, 3)
    parameters = [th.nn.Parameter(th.zeros(2, 3)), th.nn.Parameter(th.zeros(3, 2).T), th.nn.Parameter(th.zeros(()))]
    tied = parameters[0].detach()
    before = [(parameter.data_ptr(), parameter.stride()) for parameter in parameters]
    assign(parameters, [source.requires_grad_(), source + 6.0, th.tensor(12.0)])
    assert all(parameter.is_leaf and parameter.requires_grad for parameter in parameters)
    assert parameters[0].data_ptr() != source.data_ptr()
    assert [(parameter.data_ptr(), parameter.stride()) for parameter in parameters] == before
    assert flatten(parameters).tolist() == list(range(13))
    assert th.equal(tied, source)


def test_assign_copies_every_bit():
    bits = th.tensor([-(2**63), 0x7FF8_0000_DEAD_BEEF, 0x7FF0_0000_0000_0001, 1, 0x7FF << 52])  # -0, two NaNs, subnormal, inf
    parameter = th.nn.Parameter(th.zeros(5, dtype=th.float64))
    assign([parameter], [bits.view(th.float64)])
    assert th.equal(parameter.detach().view(th.int64), bits)


def test_an_interrupt_at_any_moment_leaves_all_or_none_assigned():
    for moment in range(1000):
        parameters = [th.nn.Parameter(th.zeros(())) for _ in range(3)]
        try:
            with th.enable_grad(), interrupt_at(moment):
                assign(parameters, [th.ones(()) for _ in range(3)])
        except KeyboardInterrupt:
            assert flatten(parameters).tolist() in ([0.0] * 3, [1.0] * 3)
        else:
            break
    assert moment > 5
