"""What a Recorder makes of values, and that they come back from it through JSON text and safetensors."""

import copy
import enum
import functools
import json
import logging
import math
import random
import re
import struct
import types
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import safetensors.numpy
import torch as th
from hypothesis import given, strategies as st
from hypothesis.extra import numpy as hnp

from sb3_trpo.checkpoint.codecs.file_paths import is_file_path
from sb3_trpo.checkpoint.codecs.nodes import LIVE, NUMBERS, brings_own_state, fingerprint, qualified_name
from sb3_trpo.checkpoint.codecs.recording import PACKED_LENGTH, Recorder
from sb3_trpo.checkpoint.codecs.restoring import Restorer

Point = namedtuple("Point", "x y")
TORCH_DTYPES = [
    *(th.bool, th.uint8, th.int8, th.int16, th.int32, th.int64, th.uint16, th.uint32, th.uint64),
    *(th.float16, th.bfloat16, th.float32, th.float64),
]
FLOATS = [0.0, -0.0, 1.5, math.inf, -math.inf, math.nan, 5e-324, 2.2250738585072014e-308, 1.7976931348623157e308, 0.1]
INTS = [0, -1, 2**31, 2**63 - 1, -(2**63), 2**63, 2**64, -(2**100), 10**300]
STRINGS = ["", "plain", "a/b", "/", "\0", "\ud800", "\udfff\ud800", "ü", "\U0001f600", '"\\', "live", "nan"]


class Mood(enum.Enum):
    CALM = "calm"
    WILD = "wild"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Right(enum.Flag):
    READ = 1
    WRITE = 2


class Thing:
    def __init__(self, **attributes):
        vars(self).update(attributes)


class Slotted:
    __slots__ = ("a",)


class SlottedWithDict(Thing):
    __slots__ = ("hidden",)


class OwnState:
    def __init__(self, secret):
        self.secret = secret

    def get_state(self):
        return {"secret": self.secret}

    def set_state(self, state):
        self.secret = state["secret"]


class LikeMuJoCo:
    def __init__(self):
        self.x = 1

    def get_state(self):
        raise AssertionError("not to be asked")

    def set_state(self, qpos, qvel):
        raise AssertionError("not to be asked")


def through_files(node, arrays):
    return json.loads(json.dumps(node)), safetensors.numpy.load(safetensors.numpy.save(arrays))


def round_trip(value, live=None):
    recorder = Recorder()
    node, arrays = through_files(recorder.node(value, "v"), recorder.arrays)
    assert not recorder.opaque
    return Restorer(arrays).value(node, live, "v")


def record(value, **settings):
    recorder = Recorder(**settings)
    return recorder.node(value, "v"), recorder


def bits_of(value):
    if isinstance(value, th.Tensor):
        return value.dtype, value.shape, value.detach().contiguous().reshape(-1).view(th.uint8).numpy().tobytes()
    return value.dtype, value.shape, np.asarray(value, order="C").tobytes()


def parts_of(value):
    """Take a value apart into what its equality does not tell, and its items."""
    if isinstance(value, (np.ndarray, np.generic, th.Tensor)):
        return bits_of(value), ()
    if isinstance(value, float):
        return "nan" if math.isnan(value) else struct.pack("d", value), ()
    if isinstance(value, dict):
        return None, [*value.items()]
    if isinstance(value, (set, frozenset)):
        return value, sorted(type(item).__name__ for item in value)
    if isinstance(value, (list, tuple, deque)):
        return getattr(value, "maxlen", None), [*value]
    return value, ()


def is_same(a, b):
    """Tell whether two values are alike in types and bits, all the way down."""
    if type(a) is not type(b):
        return False
    (own, items), (other, others) = parts_of(a), parts_of(b)
    return own == other and len(items) == len(others) and all(map(is_same, items, others))


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
def test_the_comparison_of_these_tests_tells_values_apart(a, b):
    assert is_same(a, a)
    assert is_same(b, b)
    assert not is_same(a, b)


number_dtypes = st.sampled_from(sorted(NUMBERS)).map(np.dtype)
arrays = hnp.arrays(number_dtypes, hnp.array_shapes(min_dims=0, min_side=0, max_side=4))
hashables = st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()) | st.binary()
hashables |= st.sampled_from([*INTS, *FLOATS, *STRINGS])
in_sets = hashables.filter(
    lambda value: not isinstance(value, float) or not math.isnan(value)
)  # NaN is in no set twice, nor found there
leaves = hashables | arrays | arrays.filter(lambda a: a.size).map(lambda a: a.reshape(-1)[0])
long_lists = st.lists(st.integers() | st.booleans(), min_size=PACKED_LENGTH) | st.lists(st.floats(), min_size=PACKED_LENGTH)


def containers(parts):
    return (
        st.lists(parts, max_size=4)
        | st.lists(parts, max_size=4).map(tuple)
        | st.builds(deque, st.lists(parts, max_size=4), st.none() | st.integers(4, 9))
        | st.sets(in_sets, max_size=4)
        | st.frozensets(in_sets, max_size=4)
        | st.dictionaries(hashables | st.frozensets(hashables, max_size=2), parts, max_size=4)
    )


def named_containers(parts):
    return containers(parts) | st.dictionaries(hashables, parts, max_size=4).map(OrderedDict) | st.builds(Point, parts, parts)


plain_values = st.recursive(leaves | long_lists, containers, max_leaves=12)
values = st.recursive(leaves | long_lists | st.binary().map(bytearray), named_containers, max_leaves=12)


@given(values)
def test_any_value_comes_back_alike_where_its_like_is(value):
    assert is_same(round_trip(value, live=copy.deepcopy(value)), value)


@given(plain_values)
def test_any_plain_value_comes_back_where_nothing_is(value):
    assert is_same(round_trip(value), value)


@given(values)
def test_recording_changes_nothing_of_the_value(value):
    before = copy.deepcopy(value)
    record(value)
    assert is_same(value, before)


@given(values)
def test_the_same_value_is_recorded_the_same_way_twice(value):
    (first, recorder), (second, again) = record(value), record(value)
    assert fingerprint(first, recorder.arrays) == fingerprint(second, again.arrays)


@pytest.mark.parametrize("value", [None, True, False, *INTS, *FLOATS, *STRINGS, b"", b"\0\xff" * 5], ids=repr)
def test_a_scalar_comes_back_alone_and_in_a_list(value):
    assert is_same(round_trip(value), value)
    assert is_same(round_trip([value, [value]]), [value, [value]])


def test_an_integer_that_python_would_not_read_from_text_is_reported():
    recorder = Recorder()
    recorder.node([2**8000, 10**5000], "v")
    assert recorder.opaque == {"v/1": "builtins.int"}
    assert round_trip(2**8000) == 2**8000


def test_json_of_a_node_is_strict_json():
    node, _ = record([math.nan, math.inf, -math.inf])
    assert is_same(
        Restorer({}).value(json.loads(json.dumps(node, allow_nan=False)), None, "v"), [math.nan, math.inf, -math.inf]
    )


def test_a_bytearray_stays_one_where_one_is_and_can_be_changed():
    back = round_trip(bytearray(b"abc"), live=bytearray())
    back.append(1)
    assert type(back) is bytearray
    assert back == b"abc\x01"


@pytest.mark.parametrize("dtype", sorted(NUMBERS))
@pytest.mark.parametrize(
    "layout",
    [
        *(lambda a: a, lambda a: a[0, 0], lambda a: a[:0], lambda a: a[::-1, ::2], lambda a: a.T, np.asfortranarray),
        *(
            lambda a: np.array(a[1, 1]),
            lambda a: np.broadcast_to(a[0], (5, 4)),
            lambda a: a[:, :0],
            lambda a: a[None, ..., None],
        ),
    ],
    ids=["plain", "scalar", "empty", "negative strides", "transposed", "fortran", "0-d", "broadcast", "no columns", "4-d"],
)
def test_an_array_of_any_dtype_and_layout_comes_back(dtype, layout):
    value = layout(np.random.default_rng(0).integers(0, 2**15, (3, 4)).astype(dtype))
    assert is_same(round_trip(value), value)
    assert is_same(round_trip(value, live=np.zeros(3)), value)


def test_a_transposed_array_lies_in_memory_as_it_did():
    value = np.arange(24.0).reshape(2, 3, 4)
    for layout in (value, value.T, value.transpose(1, 0, 2), np.asfortranarray(value)):
        assert round_trip(layout).strides == round_trip(th.from_numpy(layout)).numpy().strides == layout.strides
        assert is_same(round_trip(layout), layout)


@pytest.mark.parametrize("texts", [["a", "", "\u00fc\ud800"], [b"ab", b""], [["x", "yy"]] * 2, []], ids=repr)
def test_an_array_of_texts_comes_back(texts):
    value = np.array(texts) if texts else np.empty((0, 2), "<U3")
    assert is_same(round_trip(value), value)
    assert is_same(round_trip(value.T), value.T)


def test_a_view_stays_a_view_of_the_same_array():
    whole = np.arange(12.0).reshape(3, 4)
    value = {"whole": whole, "row": whole[1], "back": whole[::-1, ::2]}
    back = round_trip(value)
    assert is_same(back, value)
    back["row"][:] = -1
    assert back["whole"][1].tolist() == [-1] * 4
    assert back["back"][1].tolist() == [-1] * 2


def test_an_array_of_the_other_byte_order_keeps_its_values():
    assert round_trip(np.arange(-3, 3, dtype=">i4")).tolist() == [-3, -2, -1, 0, 1, 2]


def test_a_nan_in_an_array_keeps_its_bits():
    value = np.array([0x7FF8000000000123, 0xFFF0000000000001], np.uint64).view(np.float64)
    assert is_same(round_trip(value), value)


@pytest.mark.parametrize(
    "value",
    [
        *(np.array([None]), np.array([1j]), np.zeros(2, "M8[s]"), np.zeros(2, [("a", "i4")])),
        *(np.ma.array([1.0]), np.zeros(2).view(np.recarray), np.longdouble(1), np.datetime64("2020")),
    ],
    ids=lambda value: f"{type(value).__name__} {value.dtype}",
)
def test_an_array_that_safetensors_does_not_know_is_opaque(value):
    node, recorder = record([1, value])
    assert node == {"list": [1, LIVE]}
    assert recorder.opaque == {"v/1": qualified_name(type(value))}
    assert not recorder.arrays


@pytest.mark.parametrize("dtype", TORCH_DTYPES, ids=str)
@pytest.mark.parametrize(
    "layout",
    [lambda t: t, lambda t: t[1, 2], lambda t: t[:0], lambda t: t.T, lambda t: t[:, ::2], lambda t: t[:1].expand(5, 4)],
    ids=["plain", "0-d", "empty", "transposed", "strided", "expanded"],
)
def test_a_tensor_of_any_dtype_and_layout_comes_back(dtype, layout):
    value = layout(th.randint(0, 2**15, (3, 4), generator=th.Generator().manual_seed(0)).to(dtype))
    assert is_same(round_trip(value), value)


def test_a_tensor_that_requires_gradients_comes_back():
    assert round_trip(th.tensor([1.5, -0.0], requires_grad=True)).tolist() == [1.5, -0.0]


@pytest.mark.parametrize(
    "make", [lambda: th.ones(3).to(th.float8_e4m3fn), lambda: th.eye(3).to_sparse()], ids=["float8", "sparse"]
)
def test_a_tensor_that_numpy_does_not_know_is_opaque(make):
    _, recorder = record(Thing(part=make()))
    assert recorder.opaque == {"v/part": "torch.Tensor"}


@pytest.mark.parametrize("value", [*Mood, *Level, Right.READ, Right.READ | Right.WRITE, Right(0)], ids=repr)
def test_a_member_of_an_enumeration_comes_back_itself(value):
    assert round_trip(value, live=next(iter(type(value)))) is value


def test_members_of_enumerations_as_keys_and_in_sets_come_back():
    value = {"moods": {Mood.CALM: 1, Mood.WILD: 2}, "levels": {Level.LOW}}
    live = {"moods": {Mood.CALM: 0, Mood.WILD: 0}, "levels": {Level.LOW}}
    assert is_same(round_trip(value, live), value)


def test_a_dict_with_classes_and_functions_as_keys_comes_back():
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
def test_a_container_comes_back_as_what_it_was(value):
    assert is_same(round_trip(value, live=copy.deepcopy(value)), value)


def test_a_defaultdict_keeps_its_factory():
    back = round_trip(defaultdict(list, a=[1]), live=defaultdict(list))
    assert back["new"] == []


def test_a_dict_keeps_the_order_that_it_had():
    assert list(round_trip({"b": 1, "a": 2}, live={"a": 0, "b": 0})) == ["b", "a"]


@pytest.mark.parametrize("value", [type("MyList", (list,), {})([1]), type("MyDict", (dict,), {})(a=1)], ids=repr)
def test_a_container_of_a_class_of_its_own_is_opaque(value):
    node, recorder = record(value)
    assert node == LIVE
    assert recorder.opaque == {"v": qualified_name(type(value))}


@pytest.mark.parametrize("length", [PACKED_LENGTH - 1, PACKED_LENGTH, 1000])
@pytest.mark.parametrize("kind", [list, tuple, deque])
@pytest.mark.parametrize(
    "make", [lambda i: i / 7, lambda i: -i, lambda i: (-1) ** i * math.inf, lambda i: 2**63 - 1 - i], ids=range(4)
)
def test_long_rows_of_numbers_are_packed_and_come_back(length, kind, make):
    value = kind(make(i) for i in range(length))
    node, recorder = record(value)
    assert bool(recorder.arrays) == isinstance(node[kind.__name__], str) == (length >= PACKED_LENGTH)
    assert is_same(round_trip(value), value)


@pytest.mark.parametrize("odd", [True, 1.0, 2**63, -(2**63) - 1, None, np.float64(1), np.int64(1), Level.LOW, 2**64], ids=repr)
@pytest.mark.parametrize("place", [0, 5, PACKED_LENGTH])
def test_one_odd_item_among_many_integers_keeps_its_type(odd, place):
    value = [*range(PACKED_LENGTH)]
    value.insert(place, odd)
    assert is_same(round_trip(value, live=copy.deepcopy(value)), value)


@pytest.mark.parametrize("odd", [True, 1, np.float32(1), np.float64(1)], ids=repr)
def test_one_odd_item_among_many_floats_keeps_its_type(odd):
    value = [*map(float, range(PACKED_LENGTH)), odd]
    assert is_same(round_trip(value), value)


def test_many_booleans_stay_booleans():
    assert is_same(round_trip([True, False] * 20), [True, False] * 20)


@pytest.mark.parametrize(
    "make",
    [
        *(lambda: [1], dict, set, lambda: deque([1]), lambda: np.zeros(2), lambda: th.zeros(2), lambda: bytearray(b"a")),
        *(lambda: [0.5] * 20, lambda: defaultdict(int), lambda: np.random.default_rng(0), lambda: random.Random(0)),
    ],
    ids=["list", "dict", "set", "deque", "array", "tensor", "bytearray", "packed", "defaultdict", "Generator", "Random"],
)
def test_what_is_met_twice_stays_one(make):
    shared, live = make(), make()
    back = round_trip({"a": shared, "b": [shared, make()]}, live={"a": live, "b": [live, make()]})
    assert back["a"] is back["b"][0]
    assert back["a"] is not back["b"][1]


def test_equal_values_that_are_not_the_same_stay_two():
    first, second = round_trip([np.zeros(2), np.zeros(2)])
    first += 1
    assert second.tolist() == [0, 0]


def test_a_list_that_contains_itself_comes_back():
    value = [1]
    value.append(value)
    back = round_trip(value)
    assert back[1] is back


def test_an_object_that_knows_itself_comes_back():
    thing, live = Thing(x=1), Thing(x=0)
    thing.me, live.me = thing, live
    assert round_trip(thing, live).x == 1
    assert live.me is live


def test_a_child_that_knows_its_parent_comes_back():
    thing, live = Thing(x=1, child=Thing(y=2)), Thing(x=0, child=Thing(y=0))
    thing.child.parent, live.child.parent = thing, live
    round_trip(thing, live)
    assert (live.x, live.child.y) == (1, 2)
    assert live.child.parent is live


def test_temporary_values_are_not_taken_for_one_another():
    class Fleeting:
        def __iter__(self):
            return ([index] for index in range(50))

    nodes = Recorder().nodes(Fleeting(), "v")
    assert nodes == [{"list": [index]} for index in range(50)]


def test_every_array_of_a_recorder_is_referred_to():
    recorder = Recorder()
    node = recorder.node([np.zeros(1), {"a": th.ones(2)}, [0.5] * 9, b"ab", np.float32(1), np.random.default_rng(0)], "v")
    text = json.dumps(node)
    assert all(f'"{path}"' in text for path in recorder.arrays)
    assert len(recorder.arrays) == 5


@pytest.mark.parametrize(
    "value",
    [
        *(len, print, math, int, Thing, functools.partial(len), property(), Path("a"), re.compile("a"), np.sin),
        *(np.dtype("f4"), th.float32, th.device("cpu"), logging.getLogger("a")),
        *(functools.partial(len, ()), types),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_belongs_to_the_script_is_left_to_it(value):
    node, recorder = record(value)
    assert node == LIVE
    assert not recorder.opaque


@pytest.mark.parametrize("module", ["pygame.surface", "threading", "wandb.sdk", "logging", "matplotlib.figure"])
def test_what_draws_or_logs_is_left_alone(module):
    cls = type("Screen", (Thing,), {"__module__": module})
    node, recorder = record(cls(x=1))
    assert node == LIVE
    assert not recorder.opaque


@pytest.mark.parametrize("module", ["logging_env.sim", "socketed", "wandb_tools", "threadings", "concurrently.env", "cv2x"])
def test_a_module_whose_name_only_begins_like_one_that_draws_or_logs_is_recorded(module):
    cls = type("Simulator", (Thing,), {"__module__": module})
    node, _ = record(cls(x=1))
    assert node == {"object": f"{module}.Simulator", "state": {"x": 1}}


def test_an_object_is_recorded_by_its_attributes():
    node, recorder = record(Thing(x=1, a=np.zeros(2), f=len, part=Thing(y=[2])))
    assert node == {
        "object": qualified_name(Thing),
        "state": {"x": 1, "a": {"array": "v/a"}, "part": {"object": qualified_name(Thing), "state": {"y": {"list": [2]}}}},
    }
    assert not recorder.opaque


def test_a_path_is_not_recorded_as_an_attribute_but_in_a_list():
    node, _ = record(Thing(log="/tmp/log", plain="log", files=["a/b"]))
    assert node["state"] == {"plain": "log", "files": {"list": ["a/b"]}}


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        *(
            ("x", "/tmp/log", True),
            ("x", "~/log", True),
            ("x", "C:\\log", True),
            ("log_path", "log", True),
            ("Folder", "a", True),
        ),
        *(
            ("x", "a", False),
            ("x", "", False),
            ("x", "a/b", False),
            ("x", b"/tmp", False),
            ("path", 5, False),
            ("path", None, False),
        ),
    ],
)
def test_what_is_called_a_path_or_looks_like_an_absolute_one_is_one(name, value, expected):
    assert is_file_path(name, value) is expected


def test_attributes_that_describe_an_env_are_not_its_state():
    node, _ = record(Thing(spec=1, render_mode="human", metadata={}, x=1))
    assert node["state"] == {"x": 1}


@pytest.mark.parametrize(
    "part",
    [Slotted(), re.finditer("a", "a"), struct.Struct("d"), memoryview(b"a"), SlottedWithDict(), iter([1]), object()],
    ids=lambda part: type(part).__name__,
)
def test_an_object_with_an_opaque_part_is_recorded_by_its_generators_only(part):
    generator = np.random.default_rng(0)
    space = gym.spaces.Discrete(2)
    node, recorder = record(Thing(x=1, a=np.zeros(2), rng=generator, space=space, part=part, row=[0.5] * 9))
    assert recorder.opaque == {"v/part": qualified_name(type(part))}
    assert node["state"].keys() == {"rng", "space"}
    assert all(path.startswith(("v/rng", "v/space")) for path in recorder.arrays)


def test_an_opaque_part_deep_down_is_named_by_its_path():
    _, recorder = record([Thing(parts={"a": [1, Thing(b=Slotted())]})])
    assert recorder.opaque == {"v/0/parts/0/1/b": qualified_name(Slotted)}


def test_what_an_opaque_object_shares_with_others_is_recorded_with_them():
    shared = np.arange(3)
    recorder = Recorder()
    nodes = recorder.nodes([Thing(a=shared, part=Slotted()), shared], "v")
    node, arrays = through_files({"list": nodes}, recorder.arrays)
    live = [Thing(a=None, part=Slotted()), None]
    assert Restorer(arrays).value(node, live, "v")[1].tolist() == [0, 1, 2]


def test_what_was_met_before_an_opaque_object_is_still_known_after_it():
    shared = [1]
    node, _ = record([shared, Thing(a=shared, part=Slotted()), shared])
    assert node["list"][2] == {"same": "v/0"}


def test_an_opaque_object_does_not_spoil_its_neighbour():
    node, recorder = record([Thing(part=Slotted(), x=1), Thing(y=2)])
    assert [each["state"] for each in node["list"]] == [{}, {"y": 2}]
    assert recorder.opaque.keys() == {"v/0/part"}


def test_a_wrapped_env_is_recorded_even_where_its_wrapper_is_opaque():
    class Inner(gym.Env):
        x = 0

    inner = Inner()
    inner.x = 3
    wrapper = gym.Wrapper(inner)
    wrapper.part, wrapper.y = Slotted(), 4
    node, _ = record(wrapper)
    assert node["state"]["env"]["state"]["x"] == 3
    assert "y" not in node["state"]


def test_an_object_with_a_state_of_its_own_is_asked_for_it():
    node, _ = record(OwnState(5))
    assert node == {"object": qualified_name(OwnState), "state": {}, "own": {"dict": [["secret", 5]]}}
    live = OwnState(0)
    assert round_trip(OwnState([1, 2]), live) is live
    assert live.secret == [1, 2]


def test_generators_of_an_object_with_a_state_of_its_own_are_recorded_too():
    value, live = OwnState(5), OwnState(0)
    value.rng, live.rng = np.random.default_rng(1), np.random.default_rng(2)
    round_trip(value, live)
    assert live.rng.random() == value.rng.random()


def test_an_opaque_part_in_a_state_of_its_own_leaves_the_rest_restorable():
    value, live = OwnState(Slotted()), OwnState("there")
    value.rng, live.rng = np.random.default_rng(1), np.random.default_rng(2)
    node, recorder = record(value)
    assert list(recorder.opaque.values()) == [qualified_name(Slotted)]
    Restorer(recorder.arrays).value(node, live, "v")
    assert live.rng.random() == value.rng.random()


def test_a_set_state_of_positions_and_velocities_is_not_meant():
    assert not brings_own_state(LikeMuJoCo())
    node, _ = record(LikeMuJoCo())
    assert node == {"object": qualified_name(LikeMuJoCo), "state": {"x": 1}}


@pytest.mark.parametrize(
    ("methods", "expected"),
    [
        ({"get_state": lambda self: 1, "set_state": lambda self, state: None}, True),
        ({"get_state": lambda self, deep=False: 1, "set_state": lambda self, state, strict=True: None}, True),
        ({"get_state": lambda self, key: 1, "set_state": lambda self, state: None}, False),
        ({"get_state": lambda self: 1}, False),
        ({"set_state": lambda self, state: None}, False),
        ({"get_state": 1, "set_state": 2}, False),
        ({}, False),
    ],
)
def test_only_get_state_without_and_set_state_with_one_argument_count(methods, expected):
    assert brings_own_state(type("Any", (), methods)()) is expected


def test_methods_of_an_instance_alone_do_not_count_as_a_state_of_its_own():
    assert not brings_own_state(Thing(get_state=lambda: 1, set_state=lambda state: None))


def test_a_recorder_that_does_not_descend_leaves_objects_alone_and_nothing_else():
    recorder = Recorder(descends=False)
    parts = {"thing": Thing(x=1), "array": np.zeros(1), "row": [2], "net": th.nn.Linear(1, 1), "rng": random.Random(0)}
    nodes = {name: recorder.node(part, name) for name, part in parts.items()}
    assert nodes["thing"] == LIVE
    assert nodes["row"] == {"list": [2]}
    assert {next(iter(nodes[name])) for name in ("array", "net", "rng")} == {"array", "module", "random"}
    assert "array" in recorder.arrays
    assert not recorder.opaque


def test_a_generator_without_a_state_does_not_stop_the_recording():
    node, _ = record([1, random.SystemRandom()])
    assert node["list"][0] == 1


def test_absorbed_arrays_and_opaque_parts_get_a_prefix():
    recorder = Recorder()
    recorder.absorb({"a": np.zeros(1)}, {"b": "c.D"}, prefix="p/")
    assert recorder.arrays.keys() == {"p/a"}
    assert recorder.opaque == {"p/b": "c.D"}


@pytest.mark.parametrize("change", [lambda v: v["a"].__setitem__(0, 9), lambda v: v.update(b=2), lambda v: v["c"].append(1)])
def test_a_fingerprint_tells_a_change(change):
    def make():
        return {"a": np.zeros(2), "b": 1, "c": [0.5] * 9}

    value = make()
    change(value)
    prints = [fingerprint(node, recorder.arrays) for node, recorder in map(record, (make(), value, make()))]
    assert prints[0] == prints[2] != prints[1]
