import numpy as np
import pytest
import torch as th
from helpers.ranks import in_threads
from hypothesis import given, strategies as st

from sb3_trpo.parallel.communicator import ALONE


def test_every_exchange_of_a_rank_that_is_alone_is_the_identity():
    values = th.tensor([1.5, -2.0])
    ALONE.broadcast([values])
    assert values.tolist() == [1.5, -2.0]
    assert ALONE.sum(values) is values
    assert ALONE.mean(values, 4.0).equal(values / 4.0)
    assert ALONE.gather(values).equal(values[None])
    assert ALONE.gather_objects("a") == ["a"]
    assert ALONE.broadcast_object("a") == "a"


def test_a_rank_that_is_alone_is_the_first_and_has_nobody_to_leave():
    ALONE.leave(KeyError("nobody reads this"))
    assert ALONE.is_first
    assert ALONE.size == 1


NUMBERS = st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=30)


@given(NUMBERS, st.sampled_from([1e-9, 0.25, 0.5, 0.9, 1.0]))
def test_a_quantile_is_the_smallest_value_that_enough_values_do_not_exceed(numbers, level):
    values = th.tensor(numbers, dtype=th.float32)
    assert ALONE.quantile(values, level) == np.quantile(values.numpy(), level, method="inverted_cdf")


@pytest.mark.parametrize("level", [0.3, 0.9, 1.0])
def test_a_quantile_is_that_of_the_values_of_all_ranks_however_many_each_has(level):
    values = th.randn(41, generator=th.Generator().manual_seed(0))
    parts = th.split(values, [2, 39])
    found = in_threads(2, lambda communicator: communicator.quantile(parts[communicator.rank], level))
    assert found == [np.quantile(values.numpy(), level, method="inverted_cdf")] * 2


@pytest.mark.parametrize("level", [0.5, 1.0])
def test_a_quantile_of_values_with_nan_is_nan_at_the_top(level):
    values = th.tensor([1.0, th.nan, 2.0])
    assert np.isnan(ALONE.quantile(values, level)) == (level == 1.0)
