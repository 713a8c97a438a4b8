"""Hybrid action spaces: any nesting of basic spaces as one vector and back, and what is refused."""

import pickle

import numpy as np
import pytest
from gymnasium import spaces
from helpers.hybrid import NESTED, PLATFORM, leaves
from hypothesis import given, settings, strategies as st

from sb3_trpo.rollouts.hybrid_space import HybridSpace, check_hybrid

basic = st.one_of(
    st.builds(lambda n, start: spaces.Discrete(n, start=start), st.integers(1, 5), st.integers(-5, 5)),
    st.sampled_from(
        [
            spaces.MultiDiscrete([2, 3]),
            spaces.MultiDiscrete([[2], [3]], start=[[-1], [4]]),
            spaces.MultiDiscrete([200, 100], dtype=np.uint8),
            spaces.MultiBinary(3),
            spaces.MultiBinary((2, 2)),
            spaces.Box(-1.0, 1.0, ()),
            spaces.Box(np.array([-3.0, 0.1]), np.array([0.5, 7.0]), dtype=np.float64),
            spaces.Box(-2, 9, (2, 1), np.int16),
        ]
    ),
)
nested = st.recursive(
    basic,
    lambda each: (
        st.lists(each, min_size=1, max_size=3).map(spaces.Tuple)
        | st.dictionaries(st.sampled_from(["a", "b", "c/d"]), each, min_size=1).map(spaces.Dict)
    ),
    max_leaves=6,
).filter(lambda space: isinstance(space, (spaces.Tuple, spaces.Dict)))


def assert_same_action(one, other):
    assert type(one) is type(other)
    for left, right in zip(leaves(one), leaves(other), strict=True):
        assert (np.asarray(left).dtype, np.shape(left)) == (np.asarray(right).dtype, np.shape(right))
        np.testing.assert_allclose(left, right, rtol=1e-6)


@settings(max_examples=40)
@given(nested, st.integers(0, 2**31), st.integers(1, 3))
def test_actions_are_flattened_and_come_back(space, seed, n):
    check_hybrid(space)
    space.seed(seed)
    flat = HybridSpace(space)
    samples = [space.sample() for _ in range(n)]
    rows = np.stack([flat.encode(sample) for sample in samples])
    assert rows.dtype == np.float32
    assert ((rows >= flat.low) & (rows <= flat.high)).all()
    decoded = flat.decode(rows)
    assert type(decoded) is list
    for action, sample in zip([*decoded, flat.decode(rows[0])], [*samples, samples[0]], strict=True):
        assert space.contains(action)
        assert_same_action(action, sample)


@settings(max_examples=40)
@given(nested, st.integers(0, 2**31))
def test_any_numbers_for_boxes_give_an_action_in_the_space(space, seed):
    flat, generator = HybridSpace(space), np.random.default_rng(seed)
    rows = generator.integers(flat.low.astype(int), flat.high.astype(int) + 1, (4, len(flat.low))).astype(np.float32)
    is_box = np.repeat([isinstance(part.space, spaces.Box) for part in flat.parts], [part.n_numbers for part in flat.parts])
    rows = np.where(is_box, generator.normal(0.0, 100.0, rows.shape), rows).astype(np.float32)
    assert all(space.contains(action) for action in flat.decode(rows))


def test_parts_are_in_gymnasiums_order():
    names = [part.name for part in HybridSpace(NESTED).parts]
    assert names == ["aim/0", "aim/1", "grid", "kind", "level", "power"]
    assert [part.name for part in HybridSpace(PLATFORM).parts] == ["0", "1/0", "1/1", "1/2"]
    assert HybridSpace(NESTED).shape == (2 + 2 + 2 + 1 + 2 + 1,)


def test_the_numbers_of_a_part_are_where_the_table_says():
    action = {
        "aim": (np.array([0.5, -2.5]), np.array([1, 0])),
        "grid": np.array([[1], [2]]),
        "kind": -1,
        "level": np.array([[4, 5]]),
        "power": 0.25,
    }
    np.testing.assert_allclose(HybridSpace(NESTED).encode(action), [0.5, -2.5, 1, 0, 1, 2, 0, 4, 5, 0.25])


def test_integers_are_rounded_to_the_nearest_within_their_bounds():
    flat = HybridSpace(spaces.Tuple((spaces.Box(0, 3, (4,), np.int64),)))
    (values,) = flat.decode(np.array([-0.7, 0.6, 2.4, 3.9], np.float32))
    assert values.tolist() == [0, 1, 2, 3]


def test_flat_forms_of_parts_count_from_0_and_have_one_axis():
    flats = [part.flat for part in HybridSpace(NESTED).parts]
    expected = [
        spaces.Box(-2.0, 3.0, (2,)), spaces.MultiBinary(2), spaces.MultiDiscrete([2, 3]), spaces.Discrete(3),
        spaces.Box(0, 5, (2,), np.int32), spaces.Box(-1.0, 1.0, (1,), np.float64),
    ]  # fmt: skip
    assert flats == expected


def test_names_find_parts_whole_levels_and_nothing_else():
    flat = HybridSpace(spaces.Dict({"a": spaces.Tuple((spaces.Discrete(2), spaces.Discrete(2))), "ab": spaces.Discrete(2)}))
    assert [flat.indices(name) for name in ("a", "a/1", "ab", "b", 0, "a/", "")] == [[0, 1], [1], [2], [], [], [], []]
    assert HybridSpace(PLATFORM).indices(1) == [1, 2, 3]


def test_spaces_are_the_same_only_if_their_structures_are():
    one, other = spaces.Tuple((spaces.Box(0.0, 1.0, (1,)),)), spaces.Tuple((spaces.Discrete(2),))
    assert np.array_equal(HybridSpace(one).high, HybridSpace(other).high)
    assert HybridSpace(one) == HybridSpace(one)
    assert HybridSpace(one) != HybridSpace(other)
    restored = pickle.loads(pickle.dumps(HybridSpace(NESTED)))
    assert restored == HybridSpace(NESTED)
    assert "Dict" in repr(restored)


REFUSED = {
    "an empty Tuple": (spaces.Tuple(()), "is an empty Tuple"),
    "an empty Dict inside": (spaces.Tuple((spaces.Discrete(2), spaces.Dict({}))), "at '1' is an empty Dict"),
    "text": (spaces.Dict({"say": spaces.Text(3)}), "at 'say' is Text.*must be Box, Discrete.*in a wrapper"),
    "a sequence": (spaces.Tuple((spaces.Sequence(spaces.Discrete(2)),)), "at '0' is Sequence"),
    "a graph": (spaces.Tuple((spaces.Tuple((spaces.Graph(spaces.Discrete(2), None),)),)), "at '0/0' is Graph"),
    "one of": (spaces.Tuple((spaces.OneOf((spaces.Discrete(2),)),)), "at '0' is OneOf.*action_parameters"),
    "no entries": (spaces.Dict({"none": spaces.Box(0.0, 1.0, (0,))}), "at 'none' .*no entries"),
    "no bounds": (spaces.Tuple((spaces.Box(0.0, np.inf, (2,)),)), "at '0' .*finite bounds"),
}  # fmt: skip


@pytest.mark.parametrize(("space", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_an_action_is_refused_by_name(space, message):
    with pytest.raises(ValueError, match=message):
        check_hybrid(space)
