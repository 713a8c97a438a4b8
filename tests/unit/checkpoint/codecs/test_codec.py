"""The encoder and the decoder; what a stranger writes into a checkpoint is restored or refused, and does nothing else."""

import copy
import json
import math
import random
from collections import OrderedDict, defaultdict, deque

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from helpers import codecs
from helpers.codecs import (
    HUGE,
    Mood,
    OwnState,
    Point,
    Thing,
    decode,
    encode,
    generator_of,
    is_same,
    object_of,
    round_trip,
    sent,
)
from hypothesis import given, settings, strategies as st
from hypothesis.extra import numpy as hnp

from sb3_trpo.checkpoint.codecs.arrays import NUMBERS
from sb3_trpo.checkpoint.codecs.codec import LIVE, Decoder, Encoder, MismatchError
from sb3_trpo.checkpoint.codecs.containers import SHORTEST_PACKED
from sb3_trpo.checkpoint.codecs.generators import BIT_GENERATORS
from sb3_trpo.checkpoint.codecs.inspection import fingerprint, qualified_name
from sb3_trpo.checkpoint.codecs.registry import CODECS


@pytest.mark.parametrize(
    ("a", "b"),
    [
        *((1, True), (1, 1.0), (0.0, -0.0), ([1], (1,)), ([1, 2], [1]), ({"a": 1}, {"a": True}), (b"a", bytearray(b"a"))),
        *((np.zeros(2), np.zeros(2, "f4")), (np.zeros(2), -np.zeros(2)), (np.zeros((1, 2)), np.zeros((2, 1)))),
        *((deque([1], 2), deque([1])), ({1}, {True}), ({1}, {2}), (np.float64(1), 1.0), ({1: 2, 3: 4}, {3: 4, 1: 2})),
        *((th.zeros(1), th.zeros(1, dtype=th.bfloat16)), ([[1, 2.0]], [[1, 2]]), (Point(1, 2), (1, 2)), (math.nan, 0.0)),
    ],
    ids=repr,
)
def test_is_same_tells_values_apart(a, b):
    assert is_same(a, a)
    assert is_same(b, b)
    assert not is_same(a, b)


number_dtypes = st.sampled_from(sorted(NUMBERS)).map(np.dtype)
arrays = hnp.arrays(number_dtypes, hnp.array_shapes(min_dims=0, min_side=0, max_side=4))
hashables = st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()) | st.binary()
hashables |= st.sampled_from([*codecs.INTS, *codecs.FLOATS, *codecs.STRINGS])
in_sets = hashables.filter(lambda value: repr(value) != "nan")  # NaN is in no set twice, nor found there
leaves = hashables | arrays | arrays.filter(lambda a: a.size).map(lambda a: a.reshape(-1)[0])
numbers = st.integers() | st.booleans(), st.floats()
leaves_and_rows = leaves | st.one_of(st.lists(each, min_size=SHORTEST_PACKED) for each in numbers)


def containers(parts):
    return (
        st.lists(parts, max_size=4)
        | st.lists(parts, max_size=4).map(tuple)
        | st.builds(deque, st.lists(parts, max_size=4), st.none() | st.integers(4, 9))
        | st.sets(in_sets, max_size=4)
        | st.frozensets(in_sets, max_size=4)
        | st.dictionaries(hashables | st.frozensets(in_sets, max_size=2), parts, max_size=4)
    )


def named_containers(parts):
    return containers(parts) | st.dictionaries(hashables, parts, max_size=4).map(OrderedDict) | st.builds(Point, parts, parts)


plain_values = st.recursive(leaves_and_rows, containers, max_leaves=12)
values = st.recursive(leaves_and_rows | st.binary().map(bytearray), named_containers, max_leaves=12)


@given(values)
def test_any_value_is_restored_where_a_similar_one_is(value):
    assert is_same(round_trip(value, live=copy.deepcopy(value)), value)


@given(plain_values, st.none() | plain_values)
def test_any_plain_value_is_restored_whatever_is_there(value, there):
    assert is_same(round_trip(value, live=there), value)


@given(values)
def test_encoding_repeats_itself_and_does_not_change_the_value(value):
    before = copy.deepcopy(value)
    (first, encoder), (second, again) = encode(value), encode(value)
    assert fingerprint(first, encoder.arrays) == fingerprint(second, again.arrays)
    assert is_same(value, before)


@pytest.mark.parametrize(
    "make",
    [
        *(lambda: [1], dict, set, lambda: deque([1]), lambda: np.zeros(2), lambda: th.zeros(2), lambda: bytearray(b"a")),
        *(lambda: [0.5] * 20, lambda: defaultdict(int), lambda: np.random.default_rng(0), lambda: random.Random(0)),
    ],
    ids=["list", "dict", "set", "deque", "array", "tensor", "bytearray", "packed", "defaultdict", "Generator", "Random"],
)
def test_a_shared_object_stays_shared(make):
    shared, live = make(), make()
    back = round_trip({"a": shared, "b": [shared, make()]}, live={"a": live, "b": [live, make()]})
    assert back["a"] is back["b"][0]
    assert back["a"] is not back["b"][1]


def test_temporary_objects_are_not_mistaken_for_each_other():
    class Fleeting:
        def __iter__(self):
            return ([index] for index in range(50))

    nodes = Encoder(CODECS).encode_all(Fleeting(), "v")
    assert nodes == [{"list": [index]} for index in range(50)]


def test_the_encoding_refers_to_every_array():
    encoder = Encoder(CODECS)
    node = encoder.encode([np.zeros(1), {"a": th.ones(2)}, [0.5] * 9, b"ab", np.float32(1), np.random.default_rng(0)], "v")
    text = json.dumps(node)
    assert all(f'"{path}"' in text for path in encoder.arrays)
    assert len(encoder.arrays) == 5


def test_a_shallow_encoder_leaves_objects_alone_and_nothing_else():
    encoder = Encoder(CODECS, deep=False)
    parts = {"thing": Thing(x=1), "array": np.zeros(1), "row": [2], "net": th.nn.Linear(1, 1), "rng": random.Random(0)}
    nodes = {name: encoder.encode(part, name) for name, part in parts.items()}
    assert nodes["thing"] == LIVE
    assert nodes["row"] == {"list": [2]}
    assert {next(iter(nodes[name])) for name in ("array", "net", "rng")} == {"array", "module", "random"}
    assert "array" in encoder.arrays
    assert not encoder.unsupported


def test_merged_arrays_and_unsupported_values_get_a_prefix():
    encoder = Encoder(CODECS)
    encoder.merge({"a": np.zeros(1)}, {"b": "c.D"}, prefix="p/")
    assert encoder.arrays.keys() == {"p/a"}
    assert encoder.unsupported == {"p/b": "c.D"}


KINDS = [*(kind for codec in CODECS for kind in codec.kinds), "same", "changed"]


def test_what_is_not_encoded_stays_as_it_is_and_must_be_there():
    assert round_trip([len, 1], [max, 0]) == [max, 1]
    assert round_trip({"a": len}, {"a": max}) == {"a": max}
    assert decode(LIVE, len) is len
    with pytest.raises(MismatchError):
        decode(LIVE, None)


IMPOSSIBLE = [
    {}, {"": 1}, {"unknown": 1}, {"__class__": 1}, {"eval": "1"}, {"LIST": []}, {"pickle": "x"}, {"object ": "a"},
    {"list": 5}, {"list": None}, {"list": "missing"}, {"tuple": 1.5}, {"set": 5, "x": 1}, {"set": [{"list": []}]},
    {"frozenset": [{"dict": []}]}, {"deque": []}, {"deque": [], "maxlen": -1}, {"deque": [], "maxlen": "x"},
    {"deque": [], "maxlen": 1.5}, {"deque": [], "maxlen": 10**30}, {"deque": None, "maxlen": None},
    {"dict": 1}, {"dict": [1]}, {"dict": [[1]]}, {"dict": [[1, 2, 3]]}, {"dict": [[{"list": []}, 1]]}, {"dict": {"a": 1}},
    {"float": "x"}, {"float": None}, {"float": {}}, {"float": []}, {"float": HUGE}, {"float": -HUGE},
    {"array": "missing"}, {"array": None}, {"array": []}, {"array": {}}, {"array": 5},
    {"scalar": "missing"}, {"scalar": []}, {"bytes": "missing"}, {"bytes": {}}, {"enum": "A"}, {"enum": None},
    {"tensor": "missing", "dtype": "float32"}, {"tensor": "a"}, {"tensor": {}, "dtype": "float32"}, {"tensor": [], "dtype": 1},
    {"same": "unknown"}, {"same": "v"}, {"same": None}, {"same": []}, {"same": {}}, {"live": None}, {"live": {"a": 1}},
    {"generator": "PCG65", "state": {}}, {"generator": "PCG64"}, {"generator": "PCG64", "state": None},
    {"generator": "default_rng", "state": {}}, {"generator": "seed", "state": 1}, {"generator": [], "state": 1},
    {"generator": "PCG64", "state": {"dict": []}}, {"generator": "MT19937", "state": {"dict": [["bit_generator", "PCG64"]]}},
    {"random_state": None}, {"random_state": {}}, {"random_state": {"dict": []}}, {"random_state": {"tuple": [1, 2]}},
    {"random": None}, {"random": 5}, {"random": {"tuple": []}}, {"random": {"tuple": [3, {"tuple": []}, None]}},
    {"random": {"tuple": [3, {"tuple": [-1] * 625}, None]}}, {"random": {"tuple": [3, {"tuple": [HUGE] * 625}, None]}},
    {"random": {"tuple": [9, {"tuple": [1] * 625}, None]}}, {"random": {"tuple": [3, {"tuple": [1] * 624 + [999]}, None]}},
    {"torch_generator": None}, {"torch_generator": 5}, {"torch_generator": {"tensor": "a", "dtype": "float32"}},
    {"space": []}, {"space": None}, {"module": {}}, {"module": None}, {"module": {"dict": []}}, {"optimizer": {"dict": []}},
    {"object": None}, {"object": "builtins.NoneType"}, {"object": "builtins.NoneType", "state": {}}, {"object": []},
    {"object": "os.system", "state": {}}, {"object": "builtins.eval", "state": {"a": 1}},
]  # fmt: skip


@pytest.mark.parametrize("node", IMPOSSIBLE, ids=lambda node: repr(node)[:70])
def test_an_encoding_that_no_encoder_makes_is_refused(node):
    with pytest.raises(MismatchError):
        decode(node, None, a=np.zeros(3, np.float32))


@pytest.mark.parametrize("kind", ["list", "tuple", "dict", "object"])
@pytest.mark.parametrize("depth", [10, 300, 5000])
def test_an_encoding_of_any_depth_is_restored_or_refused(kind, depth):
    node, live = 1, Thing()
    live.x = live
    for _ in range(depth):
        content = {"dict": [[1, node]], "object": qualified_name(Thing)}.get(kind, [node])
        node = {kind: content, "state": {"x": node}} if kind == "object" else {kind: content}
    if depth == 5000:
        with pytest.raises(MismatchError):
            decode(node, live)
    else:
        assert restore_or_mismatch(node, live, {}) >= (depth == 10)


METHODS = ["method", "of_class", "__init__", "__class__", "__setattr__", "__reduce__", "__eq__"]
SPECIAL = ["dict", "doc", "module", "weakref", "slots", "deepcopy", "array", "wrapped", "getattr"]
NO_IDENTIFIERS = ["", "a b", "a.b", "1a", "a/b", "x\0", "a-b", "\ud800", "()"]


@pytest.mark.parametrize("name", [*METHODS, *(f"__{name}__" for name in SPECIAL), *NO_IDENTIFIERS, "f"], ids=repr)
def test_an_encoding_cannot_hide_a_method_or_set_anything_but_a_plain_attribute(name):
    for node in (5, None, "x", {"list": []}, {"dict": []}, LIVE):
        live = Thing(x=1, f=len)
        with pytest.raises(MismatchError):
            decode(object_of(live, **{name: node}), live)
        assert vars(live) == {"x": 1, "f": len}


def test_an_encoding_cannot_give_a_function_another_name():
    live = Thing(hooks=[len], x=1)
    node = object_of(live, hooks={"list": [{"live": None}]}, __deepcopy__={"same": "v/hooks/0"})
    with pytest.raises(MismatchError):
        decode(node, live)
    assert "__deepcopy__" not in vars(live)


class Trap(Thing):
    """Fails the test if anything is called on it."""

    def __init__(self):
        vars(self).update(x=1, row=[0], part=Thing(y=1), hooks=[self.hook])

    def hook(self, *args):
        raise AssertionError("called")

    __call__ = __setattr__ = __len__ = __iter__ = hook
    run = reset = seed = close = set_state = hook


LIVES = {
    "None": lambda: None, "int": lambda: 5, "str": lambda: "text", "enum": lambda: Mood.CALM, "class": lambda: Thing,
    "list": lambda: [1, [2], Thing(x=1)], "tuple": lambda: (1, Point(1, 2)), "dict": lambda: {"x": 1, "y": {"a": 2}},
    "ordered": lambda: OrderedDict(a=1), "deque": lambda: deque([1], 5), "point": lambda: Point(1, [2]),
    "array": lambda: np.zeros((2, 3)), "window": lambda: np.frombuffer(bytearray(24), np.float64),
    "tensor": lambda: th.zeros(2, 3), "generator": lambda: np.random.default_rng(0), "torch_generator": th.Generator,
    "random_state": lambda: np.random.RandomState(0), "random": lambda: random.Random(0),
    "space": lambda: gym.spaces.Dict(a=gym.spaces.Discrete(3), b=gym.spaces.Tuple([gym.spaces.Discrete(2)])),
    "module": lambda: th.nn.Linear(2, 2),
    "optimizer": lambda: th.optim.Adam(th.nn.Linear(2, 2).parameters()),
    "thing": lambda: Thing(x=1, part=Thing(y=2), row=[1, 2]), "own": OwnState, "trap": Trap, "function": lambda: encode,
}  # fmt: skip
ARRAYS = {"a": np.zeros(3, np.float32), "b": np.array(7), "c": np.zeros((2, 0), bool)}
ARRAYS |= {"s": np.arange(624, dtype=np.uint32), "t": np.zeros(5056, np.uint8)}
WORDS = ["x", "row", "part", "v", "v/0", "v/x", "CALM", "__class__", "nan"]
WORDS += ["dtype", "bfloat16", "state", "own", "maxlen", "key", "bit_generator", "pos"]
CLASSES = [qualified_name(type(make())) for make in LIVES.values()]
names = st.sampled_from([*ARRAYS, *KINDS, *BIT_GENERATORS, *WORDS, *CLASSES])
scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | names
scalars |= st.sampled_from([HUGE, -HUGE, 2**64])


def dicts_of(parts):
    def kinds(kind):
        more = st.dictionaries(st.sampled_from(["state", "dtype", "maxlen", "own"]) | names, parts, max_size=3)
        return st.builds(lambda content, rest: {kind: content} | rest, parts, more)

    pairs = st.lists(st.lists(parts, min_size=2, max_size=2), max_size=3).map(lambda items: {"dict": items})
    states = st.dictionaries(names | st.text(max_size=3), parts, max_size=3)
    objects = st.builds(lambda name, state: {"object": name, "state": state}, names, states)
    return st.sampled_from(list(KINDS)).flatmap(kinds) | pairs | objects


def parts_of(values):
    return st.lists(values, max_size=4) | dicts_of(values) | st.dictionaries(names, values, max_size=3)


json_values = st.recursive(scalars, parts_of, max_leaves=10)


def restore_or_mismatch(node, live, arrays):
    decoder = Decoder(CODECS, {name: array.copy() for name, array in arrays.items()})
    try:
        decoder.decode(json.loads(json.dumps(node)), live, "v")
    except MismatchError:
        return False
    return True


@pytest.mark.parametrize("kind", LIVES)
@settings(max_examples=15)
@given(node=dicts_of(json_values))
def test_any_json_is_restored_or_refused(kind, node):
    restore_or_mismatch(node, LIVES[kind](), ARRAYS)
    assert Thing.constant == 3
    assert [*Mood] == [Mood.CALM, Mood.WILD]


def rich_value():
    return Thing(
        row=[1, (2.5, None), {3}, deque([4], 5)],
        long=[0.5] * 9,
        table={"a": np.arange(3), ("b", 1): th.ones(2, dtype=th.bfloat16), "p": Point(1, b"x")},
        rng=[np.random.default_rng(1), generator_of("MT19937", 1), random.Random(1), np.random.RandomState(1)],
        torch=th.Generator(),
        space=gym.spaces.Tuple([gym.spaces.Discrete(2, seed=1)]),
        learns=[network := th.nn.Linear(1, 1), th.optim.Adam(network.parameters())],
        mood=Mood.WILD,
        own=OwnState({"a": 1}),
        shared=[network],
    )


def places_in(node, path=()):
    yield path
    for key in node if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ():
        yield from places_in(node[key], (*path, key))


RICH = sent(rich_value())
PLACES = [place for place in places_in(RICH[0]) if len(place) < 9]


@given(place=st.sampled_from(PLACES[1:]), change=st.sampled_from(["replace", "delete", "rename"]), value=json_values)
def test_an_encoding_changed_in_one_place_is_restored_or_refused(place, change, value):
    node, arrays = copy.deepcopy(RICH[0]), RICH[1]
    *way, last = place
    parent = node
    for key in way:
        parent = parent[key]
    if change == "replace" or isinstance(parent, list):
        parent[last] = value
    else:
        content = parent.pop(last)
        if change == "rename":
            parent[json.dumps(value)[:9]] = content
    restore_or_mismatch(node, rich_value(), arrays)


@given(name=st.sampled_from(sorted(RICH[1])), other=st.sampled_from(sorted(RICH[1])))
def test_swapped_arrays_are_restored_or_refused(name, other):
    restore_or_mismatch(RICH[0], rich_value(), RICH[1] | {name: RICH[1][other], other: RICH[1][name]})


@given(name=st.sampled_from(sorted(RICH[1])))
def test_a_missing_array_is_refused(name):
    arrays = {path: array for path, array in RICH[1].items() if path != name}
    assert not restore_or_mismatch(RICH[0], rich_value(), arrays)


def test_the_unchanged_encoding_is_restored():
    live = rich_value()
    live.row, live.rng[0] = None, np.random.default_rng(9)
    assert restore_or_mismatch(*RICH[:1], live, RICH[1])
    assert live.row == [1, (2.5, None), {3}, deque([4], 5)]
    assert live.rng[0].random() == np.random.default_rng(1).random()
