import math
from fractions import Fraction

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from helpers.ranks import in_threads
from hypothesis import given, strategies as st

from sb3_trpo.parallel.communicator import ALONE, Communicator
from sb3_trpo.parallel.sharding import (
    MinibatchShard,
    first_numbers,
    mean_gradients,
    seed_of_rank,
    shard_minibatches,
    steps_of_rank,
    weighted_minibatches,
)


class Rank(Communicator):
    """One of several ranks that exist only as numbers of transitions."""

    def __init__(self, rank, size, numbers=()):
        self.rank, self.size, self.numbers = rank, size, numbers

    def gather(self, values):
        assert values == self.numbers[self.rank]
        return th.tensor(self.numbers)


def test_the_first_rank_keeps_the_seed_and_the_others_get_different_ones():
    seeds = {seed_of_rank(seed, Rank(rank, 32)) for seed in range(100) for rank in range(32)}
    assert all(seed_of_rank(seed, Rank(0, 32)) == seed for seed in range(100))
    assert len(seeds) == 100 * 32


def test_without_a_seed_no_rank_has_one():
    assert seed_of_rank(None, Rank(3, 4)) is None


@given(st.integers(0, 2**32 - 1), st.integers(1, 10_000))
def test_a_derived_seed_suits_every_generator_and_does_not_depend_on_the_number_of_ranks(seed, rank):
    derived = seed_of_rank(seed, Rank(rank, rank + 1))
    assert derived == seed_of_rank(seed, Rank(rank, rank + 5))
    assert 0 <= derived < 2**31
    np.random.RandomState(derived)
    gym.utils.seeding.np_random(derived)


@given(st.integers(1, 50), st.integers(0, 10_000))
def test_steps_are_divided_evenly_and_add_up(size, more):
    parts = [steps_of_rank(size + more, Rank(rank, size)) for rank in range(size)]
    assert sum(parts) == size + more
    assert 1 <= min(parts) <= max(parts) <= min(parts) + 1


@given(st.integers(2, 50), st.data())
def test_fewer_steps_than_ranks_are_refused(size, data):
    n_steps = data.draw(st.integers(0, size - 1))
    message = rf"n_steps is {n_steps}, which {size} ranks share; it must be at least {size}\. Raise n_steps\."
    with pytest.raises(ValueError, match=message):
        steps_of_rank(n_steps, Rank(0, size))


@given(st.integers(1, 5000), st.lists(st.integers(1, 10_000), min_size=2, max_size=9))
def test_minibatches_are_divided_in_proportion_to_transitions(batch_size, numbers):
    shards = [shard_minibatches(batch_size, n, Rank(rank, len(numbers), numbers)) for rank, n in enumerate(numbers)]
    exact = [Fraction(batch_size * n, sum(numbers)) for n in numbers]
    assert all(0 <= shard.batch_size - part < 1 <= shard.batch_size for shard, part in zip(shards, exact, strict=True))
    n_minibatches = [-(-n // shard.batch_size) for n, shard in zip(numbers, shards, strict=True)]
    assert [shard.n_minibatches for shard in shards] == n_minibatches
    assert {shard.n_steps for shard in shards} == {max(n_minibatches)}
    assert max(n_minibatches) <= -(-sum(numbers) // batch_size)


def test_a_rank_that_is_alone_has_whole_minibatches():
    assert shard_minibatches(32, 100, ALONE) is None
    assert [*weighted_minibatches("abc", None)] == [("a", 1.0), ("b", 1.0), ("c", 1.0)]
    assert [*weighted_minibatches("", None)] == []


def test_a_rank_with_fewer_minibatches_repeats_the_last_one_with_weight_0():
    shard = MinibatchShard(batch_size=4, n_minibatches=2, n_steps=4)
    assert [*weighted_minibatches("ab", shard)] == [("a", 1.0), ("b", 1.0), ("b", 0.0), ("b", 0.0)]


@pytest.mark.parametrize("minibatches", ["abc", "a", ""])
def test_another_number_of_minibatches_than_the_ranks_expect_is_an_error(minibatches):
    message = rf"The rollout buffer's get\(4\) gives {len(minibatches)} minibatches or more, but its size makes 2"
    with pytest.raises(ValueError, match=message):
        [*weighted_minibatches(minibatches, MinibatchShard(batch_size=4, n_minibatches=2, n_steps=2))]


PARAMETERS = [th.zeros(2), th.zeros(2, 3), th.zeros(())]


def test_a_rank_that_is_alone_divides_its_gradients_by_the_number_of_states():
    divided, missing, scalar = mean_gradients([th.tensor([2.0, 4.0]), None, th.tensor(1.0)], PARAMETERS, 4, ALONE)
    assert divided.tolist() == [0.5, 1.0]
    assert missing is None
    assert scalar.item() == 0.25


def test_gradients_are_averaged_over_the_states_of_all_ranks():
    totals = {0: [th.tensor([2.0, 4.0]), None, None], 1: [th.tensor([1.0, -7.0]), th.ones(2, 3), None]}
    sizes = {0: 1, 1: 3}

    def average(communicator):
        return mean_gradients(totals[communicator.rank], PARAMETERS, sizes[communicator.rank], communicator)

    for of_both, of_one, of_none in in_threads(2, average):
        assert of_both.tolist() == [0.75, -0.75]
        assert of_one.equal(th.full((2, 3), 0.25))
        assert of_none is None


def test_all_ranks_take_the_first_ones_numbers():
    own = {0: [0.1, None, math.inf], 1: [0.2, 0.3, None]}
    assert in_threads(2, lambda communicator: first_numbers(own[communicator.rank], communicator)) == [own[0], own[0]]
