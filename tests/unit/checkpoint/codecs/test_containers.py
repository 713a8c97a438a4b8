"""Containers."""

import copy
import math
from collections import Counter, OrderedDict, defaultdict, deque

import numpy as np
import pytest
from helpers.codecs import Level, Point, encode, is_same, round_trip

from sb3_trpo.checkpoint.codecs.codec import LIVE
from sb3_trpo.checkpoint.codecs.containers import SHORTEST_PACKED
from sb3_trpo.checkpoint.codecs.inspection import qualified_name


def test_a_dict_with_classes_and_functions_as_keys_is_restored():
    assert round_trip({int: 1, len: 2}, live={int: 0, len: 0}) == {int: 1, len: 2}


@pytest.mark.parametrize(
    "value",
    [
        *(OrderedDict([("b", 1), ("a", 2)]), Counter("abca"), defaultdict(list, {"a": [1]}), {1: "a", "1": "b", (1, 2): "c"}),
        *(deque([1, 2], 3), deque(), deque(maxlen=0), deque(range(20), 10), Point(1, [2]), Point(Point(1, 2), None)),
        *({1, "a", None, (1, 2)}, frozenset(range(20)), set(), (), ((),), [[]], {True: False}, {None: {None: None}}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_container_is_restored_with_its_type(value):
    assert is_same(round_trip(value, live=copy.deepcopy(value)), value)


def test_a_dict_keeps_its_order_and_a_defaultdict_its_factory():
    assert list(round_trip({"b": 1, "a": 2}, live={"a": 0, "b": 0})) == ["b", "a"]
    assert round_trip(defaultdict(list, a=[1]), live=defaultdict(list))["new"] == []


@pytest.mark.parametrize("value", [type("MyList", (list,), {})([1]), type("MyDict", (dict,), {})(a=1)], ids=repr)
def test_a_subclass_of_a_container_is_reported(value):
    node, encoder = encode(value)
    assert node == LIVE
    assert encoder.unsupported == {"v": qualified_name(type(value))}


@pytest.mark.parametrize("length", [SHORTEST_PACKED - 1, SHORTEST_PACKED, 1000])
@pytest.mark.parametrize("kind", [list, tuple, deque])
@pytest.mark.parametrize(
    "make", [lambda i: i / 7, lambda i: -i, lambda i: (-1) ** i * math.inf, lambda i: 2**63 - 1 - i], ids=range(4)
)
def test_long_sequences_of_numbers_are_packed_and_restored(length, kind, make):
    value = kind(make(i) for i in range(length))
    node, encoder = encode(value)
    assert bool(encoder.arrays) == isinstance(node[kind.__name__], str) == (length >= SHORTEST_PACKED)
    assert is_same(round_trip(value), value)


@pytest.mark.parametrize("odd", [True, 1.0, 2**63, -(2**63) - 1, None, np.float64(1), np.int64(1), Level.LOW, 2**64], ids=repr)
@pytest.mark.parametrize("place", [0, 5, SHORTEST_PACKED])
def test_one_odd_item_among_many_integers_keeps_its_type(odd, place):
    value = [*range(SHORTEST_PACKED)]
    value.insert(place, odd)
    assert is_same(round_trip(value, live=copy.deepcopy(value)), value)


@pytest.mark.parametrize("odd", [True, 1, np.float32(1), np.float64(1)], ids=repr)
def test_one_odd_item_among_many_floats_or_booleans_keeps_its_type(odd):
    for value in ([*map(float, range(SHORTEST_PACKED)), odd], [True, False] * SHORTEST_PACKED + [odd]):
        assert is_same(round_trip(value), value)


def test_a_list_that_contains_itself_is_restored():
    value = [1]
    value.append(value)
    back = round_trip(value)
    assert back[1] is back


def test_there_may_be_fewer_live_items_than_encoded_ones():
    assert round_trip([[1], [2], np.ones(1)], [[0]])[:2] == [[1], [2]]
    assert round_trip((1, 2), None) == (1, 2)
    assert round_trip(Point(1, 2), Point(0, 0)) == Point(1, 2)
