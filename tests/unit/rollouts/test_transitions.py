"""Transitions and their chunks: sums leave padding out, and no more is in memory than what is being read."""

import gc
import weakref
from functools import partial

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from helpers.envs import VECTOR

from sb3_trpo.rollouts.inputs import ObservationInputs
from sb3_trpo.rollouts.transitions import GRAPH_LIMITS, Chunks, LazySequence, Transitions, default_chunk_size


def transitions(advantages, weights=None, n_padding=0):
    part = th.as_tensor(advantages)
    return Transitions(ObservationInputs(part[:, None]), part, part, part, part, weights, n_padding)


def test_all_transitions_count_unless_some_are_padding():
    part = transitions([1.0, 2.0, 4.0])
    assert part.weight == 3.0
    assert part.total(part.advantages) == 7.0
    padded = transitions([1.0, 2.0, 4.0], th.tensor([1.0, 1.0, 0.0]), n_padding=1)
    assert padded.weight == 2.0
    assert padded.total(padded.advantages) == 3.0


def counting(n):
    """Return makers of n items, and how often each item was made."""
    made = [0] * n

    def make(index):
        made[index] += 1
        return [index]

    return [partial(make, index) for index in range(n)], made


def test_items_are_made_when_they_are_asked_for():
    makers, made = counting(3)
    sequence = LazySequence(makers)
    assert len(sequence) == 3
    assert made == [0, 0, 0]
    assert sequence[1] == sequence[-2] == [1]
    assert made == [0, 2, 0]
    assert list(sequence) == [[0], [1], [2]]
    assert made == [1, 3, 1]
    with pytest.raises(IndexError):
        sequence[3]


def test_a_single_item_is_made_once():
    makers, made = counting(1)
    sequence = LazySequence(makers)
    assert sequence[0] is sequence[-1] is next(iter(sequence))
    assert made == [1]
    with pytest.raises(IndexError):
        sequence[1]


@pytest.mark.parametrize("n", [1, 3])
def test_an_index_error_of_a_maker_does_not_end_the_sequence(n):
    def fail():
        raise IndexError("of the maker")

    with pytest.raises(IndexError, match="of the maker"):
        list(LazySequence([fail] * n))


def test_slices_and_maps_are_lazy_too():
    makers, made = counting(4)
    sequence = LazySequence(makers)
    tail = sequence[2:].map(lambda item: 10 * item[0])
    assert made == [0, 0, 0, 0]
    assert list(tail) == [20, 30]
    assert made == [0, 0, 1, 1]
    assert list(sequence[4:]) == []


@pytest.mark.parametrize(("n", "n_left"), [(3, 0), (1, 1)])
def test_no_chunk_stays_in_memory_unless_it_is_the_only_one(n, n_left):
    alive = []

    def read():
        part = transitions(th.ones(2))
        alive.append(weakref.ref(part.inputs))
        return part

    chunks = Chunks([read] * n, np.ones(2 * n))
    for index in range(n):
        assert chunks[index].weight == 2.0
        gc.collect()
        assert sum(inputs() is not None for inputs in alive) == n_left


def chunks_of(*advantages):
    return Chunks([partial(transitions, part) for part in advantages], np.concatenate(advantages))


@pytest.mark.parametrize("n", [1, 3])
def test_advantages_are_shifted_and_then_scaled_each_time_they_are_read(n):
    chunks = chunks_of(*[np.array([1.0, 3.0])] * n).with_advantages(1.0, 0.5)
    for _ in range(2):
        assert [chunk.advantages.tolist() for chunk in chunks] == [[0.0, 1.0]] * n
        assert [chunk.returns.tolist() for chunk in chunks] == [[1.0, 3.0]] * n
    assert chunks.advantages.tolist() == [0.0, 1.0] * n


def test_joined_chunks_follow_each_other():
    joined = Chunks.joined([chunks_of(np.array([1.0])), chunks_of(np.array([2.0]), np.array([3.0, 4.0]))])
    assert [chunk.advantages.tolist() for chunk in joined] == [[1.0], [2.0], [3.0, 4.0]]
    assert joined.advantages.tolist() == [1.0, 2.0, 3.0, 4.0]
    assert [len(inputs) for inputs in joined.inputs] == [1, 1, 2]


@pytest.mark.parametrize(
    ("space", "size"),
    [
        (spaces.Box(0, 255, (84, 84, 4), np.uint8), GRAPH_LIMITS.entries // (84 * 84 * 4)),
        (spaces.Box(0, 255, (5000, 5000, 3), np.uint8), 1),
        (spaces.Box(-1.0, 1.0, (3,)), GRAPH_LIMITS.transitions),
        (spaces.Box(-1.0, 1.0, (2**12,)), GRAPH_LIMITS.entries // 2**12),
        (spaces.Discrete(7), GRAPH_LIMITS.transitions),
        (spaces.Dict(image=spaces.Box(0, 255, (64, 64, 1), np.uint8), vector=VECTOR), GRAPH_LIMITS.entries // (64 * 64 + 3)),
    ],
    ids=["atari", "huge", "vector", "long vector", "number", "dict"],
)
def test_the_default_chunk_is_as_large_as_memory_allows(space, size):
    assert default_chunk_size(space, GRAPH_LIMITS) == size
    assert 1 <= size <= GRAPH_LIMITS.transitions
