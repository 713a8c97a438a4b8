"""Values made of nodes in the likeness of what is there; and that a node from a stranger does nothing else."""

import copy
import enum
import functools
import json
import logging
import math
import random
import threading
import types
from collections import OrderedDict, deque, namedtuple

import gymnasium as gym
import numpy as np
import pytest
import safetensors.numpy
import torch as th
from hypothesis import given, settings, strategies as st

from sb3_trpo.checkpoint.codecs.generators import BIT_GENERATORS
from sb3_trpo.checkpoint.codecs.nodes import LIVE, qualified_name
from sb3_trpo.checkpoint.codecs.recording import Recorder
from sb3_trpo.checkpoint.codecs.restoring import MAKERS, MismatchError, Restorer

Point = namedtuple("Point", "x y")
HUGE = 10**400


class Mood(enum.Enum):
    CALM = 1
    WILD = 2


class Thing:
    constant = 3

    def __init__(self, **attributes):
        vars(self).update(attributes)

    def method(self):
        raise AssertionError("called")

    @property
    def doubled(self):
        return 2 * self.x

    @classmethod
    def of_class(cls):
        raise AssertionError("called")


class Callable(Thing):
    def __call__(self):
        raise AssertionError("called")


class SetsOnly:
    """Has a ``set_state`` that no recorder would have used."""

    def __init__(self):
        self.calls = []

    def set_state(self, state):
        self.calls.append(state)


class OwnState:
    def __init__(self, x=0):
        self.x = x

    def get_state(self):
        return self.x

    def set_state(self, state):
        self.x = state


def recorded(value):
    recorder = Recorder()
    node = recorder.node(value, "v")
    assert not recorder.opaque
    return json.loads(json.dumps(node)), safetensors.numpy.load(safetensors.numpy.save(recorder.arrays))


def restore(value, live):
    node, arrays = recorded(value)
    return Restorer(arrays).value(node, live, "v")


def make_of(node, live=None, **arrays):
    return Restorer(arrays).value(node, live, "v")


def object_node(live, **state):
    return {"object": qualified_name(type(live)), "state": state}


def draws_of_numpy(generator):
    uneven = [generator.integers(0, 100, 3, dtype=np.uint8).tolist(), int(generator.integers(0, 2**31, dtype=np.int32))]
    return [generator.random(), *uneven, generator.standard_normal(5).tolist(), generator.permutation(9).tolist()]


def generator_of(kind, seed):
    return np.random.Generator(getattr(np.random, kind)(seed))


# Generators


@pytest.mark.parametrize("kind", BIT_GENERATORS)
@pytest.mark.parametrize("n_drawn", [0, 1, 7, 1000])
def test_a_generator_goes_on_where_it_was(kind, n_drawn):
    value, live = generator_of(kind, 1), generator_of(kind, 2)
    for _ in range(n_drawn):
        value.integers(0, 5, dtype=np.int32)
        value.standard_normal()
    assert restore(value, live) is live
    assert draws_of_numpy(live) == draws_of_numpy(value)


@pytest.mark.parametrize("kind", BIT_GENERATORS)
@pytest.mark.parametrize("live", [None, 5, "other"])
def test_a_generator_is_made_where_there_is_none_of_its_kind(kind, live):
    value = generator_of(kind, 1)
    value.random(5)
    if live == "other":
        live = generator_of(BIT_GENERATORS[BIT_GENERATORS.index(kind) - 1], 3)
    back = restore(value, live)
    assert back is not live
    assert type(back.bit_generator).__name__ == kind
    assert draws_of_numpy(back) == draws_of_numpy(value)


@pytest.mark.parametrize("kind", BIT_GENERATORS)
def test_recording_a_generator_does_not_draw_from_it(kind):
    value, twin = generator_of(kind, 1), generator_of(kind, 1)
    recorded(value)
    assert draws_of_numpy(value) == draws_of_numpy(twin)


@pytest.mark.parametrize("n_drawn", [0, 1, 700])
def test_a_random_state_goes_on_where_it_was(n_drawn):
    value, live = np.random.RandomState(1), np.random.RandomState(2)
    value.standard_normal(n_drawn)  # an odd number leaves one of a pair behind
    assert restore(value, live) is live
    assert live.standard_normal(1001).tolist() == value.standard_normal(1001).tolist()
    assert restore(value, None).randint(0, 2**31, 9).tolist() == value.randint(0, 2**31, 9).tolist()


@pytest.mark.parametrize("n_drawn", [0, 1, 700])
def test_a_random_of_python_goes_on_where_it_was(n_drawn):
    value, live = random.Random(1), random.Random(2)
    for _ in range(n_drawn):
        value.gauss(0, 1)
    assert restore(value, live) is live
    assert [live.gauss(0, 1) for _ in range(9)] == [value.gauss(0, 1) for _ in range(9)]
    assert restore(value, None).sample(range(99), 50) == value.sample(range(99), 50)


@pytest.mark.parametrize("n_drawn", [0, 1, 700])
def test_a_generator_of_torch_goes_on_where_it_was(n_drawn):
    value, live = th.Generator().manual_seed(1), th.Generator().manual_seed(2)
    th.randn(n_drawn, generator=value)
    assert restore(value, live) is live
    assert th.randn(99, generator=live).tolist() == th.randn(99, generator=value).tolist()
    assert th.rand(9, generator=restore(value, None)).tolist() == th.rand(9, generator=value).tolist()


def test_a_generator_that_two_share_stays_shared():
    shared = np.random.default_rng(1)
    back = restore([shared, {"a": shared}], [None, {}])
    assert back[0] is back[1]["a"]


# Spaces, modules, optimizers


def nested_space(seed):
    inner = gym.spaces.Dict(
        box=gym.spaces.Box(-1, 1, (2,)), pair=gym.spaces.Tuple((gym.spaces.Discrete(9), gym.spaces.MultiBinary(4)))
    )
    space = gym.spaces.Tuple((inner, gym.spaces.MultiDiscrete([3, 4]), gym.spaces.Sequence(gym.spaces.Discrete(5))))
    space.seed(seed)
    return space


def test_nested_spaces_draw_on_where_they_were():
    value, live = nested_space(1), nested_space(2)
    value.sample()
    low = live[0]["box"].low
    assert restore(value, live) is live
    assert repr([live.sample() for _ in range(5)]) == repr([value.sample() for _ in range(5)])
    assert live[0]["box"].low is low


def test_bounds_of_a_space_stay_the_scripts():
    value, live = gym.spaces.Box(-1, 1, (2,), seed=1), gym.spaces.Box(-5, 5, (2,), seed=2)
    restore(value, live)
    assert live.low.tolist() == [-5, -5]
    value.low, value.high = live.low, live.high
    assert live.np_random.random() == value.np_random.random()


def test_a_space_that_has_not_drawn_yet_has_no_generator_after_it_either():
    value, live = gym.spaces.Discrete(3), gym.spaces.Discrete(3, seed=1)
    restore(value, live)
    assert live._np_random is None


def test_a_space_of_other_parts_is_a_mismatch():
    value = gym.spaces.Tuple([gym.spaces.Discrete(2)] * 2)
    with pytest.raises(MismatchError, match="2 parts"):
        restore(value, gym.spaces.Tuple([gym.spaces.Discrete(2)]))


def small_network(seed, dtype=th.float32):
    th.manual_seed(seed)
    layers = th.nn.Linear(3, 4), th.nn.BatchNorm1d(4), th.nn.Tanh(), th.nn.Linear(4, 2)
    return th.nn.Sequential(*layers).to(dtype)


def train(network, optimizer, n_steps):
    dtype = next(network.parameters()).dtype
    for step in range(n_steps):
        optimizer.zero_grad()
        network(th.linspace(-1, 1, 24, dtype=dtype).reshape(8, 3) * (step + 1)).square().mean().backward()
        optimizer.step()


def weights_of(network):
    return {name: value.double().tolist() for name, value in network.state_dict().items()}


@pytest.mark.parametrize("dtype", [th.float32, th.float64, th.bfloat16], ids=str)
@pytest.mark.parametrize(
    "make",
    [
        th.optim.Adam,
        lambda p: th.optim.AdamW(p, amsgrad=True),
        lambda p: th.optim.SGD(p, lr=0.1, momentum=0.9),
        th.optim.RMSprop,
    ],
    ids=["Adam", "AMSGrad", "SGD", "RMSprop"],
)
def test_a_network_and_its_optimizer_learn_on_bit_for_bit(dtype, make):
    network, other = small_network(1, dtype), small_network(2, dtype)
    optimizer, other_optimizer = make(network.parameters()), make(other.parameters())
    train(network, optimizer, 3)
    parameters = [*other.parameters()]
    assert restore(network, other) is other
    assert restore(optimizer, other_optimizer) is other_optimizer
    assert weights_of(other) == weights_of(network)
    train(network, optimizer, 3)
    train(other, other_optimizer, 3)
    assert weights_of(other) == weights_of(network)
    assert all(a is b for a, b in zip(parameters, other.parameters(), strict=True))


def test_the_learning_rate_of_an_optimizer_comes_back():
    optimizer, other = (th.optim.Adam(th.nn.Linear(1, 1).parameters(), lr=lr) for lr in (0.1 + 0.2, 1.0))
    restore(optimizer, other)
    assert other.param_groups[0]["lr"] == 0.1 + 0.2


def test_a_network_of_another_shape_is_a_mismatch():
    with pytest.raises(MismatchError):
        restore(th.nn.Linear(2, 2), th.nn.Linear(2, 3))
    with pytest.raises(MismatchError):
        restore(th.nn.Linear(2, 2), th.nn.Linear(2, 2, bias=False))
    with pytest.raises(MismatchError):
        restore(th.nn.Linear(2, 2), None)


# Objects


def test_an_object_is_filled_in_place():
    live = Thing(x=0, part=Thing(y=0), extra="stays", f=len)
    part = live.part
    assert restore(Thing(x=1, part=Thing(y=[2.5]), new={"a": 1}, f=len), live) is live
    assert live.part is part
    assert vars(part) == {"y": [2.5]}
    assert (live.x, live.new, live.extra, live.f) == (1, {"a": 1}, "stays", len)


def test_objects_in_lists_and_dicts_are_filled_in_place():
    live = [Thing(x=0), {"a": Thing(x=0)}]
    first, second = live[0], live[1]["a"]
    back = restore([Thing(x=1), {"a": Thing(x=2)}], live)
    assert back[0] is first
    assert back[1]["a"] is second
    assert (first.x, second.x) == (1, 2)


def test_an_object_that_two_share_stays_one_object():
    shared = Thing(x=1)
    back = restore([shared, shared], [Thing(x=0), Thing(x=0)])
    assert back[0] is back[1]


def test_what_is_not_recorded_stays_as_it_is():
    assert restore([len, 1], [max, 0]) == [max, 1]
    assert restore({"a": len}, {"a": max}) == {"a": max}


def test_paths_of_an_object_stay_the_scripts():
    live = Thing(log="/new/place", name="/new", other="plain")
    restore(Thing(log="/old/place", name="old", other="/old", files=["a/b"]), live)
    assert vars(live) == {"log": "/new/place", "name": "/new", "other": "plain", "files": ["a/b"]}


def test_a_node_cannot_set_a_path():
    live = Thing(log="plain")
    make_of(object_node(live, log="/etc/passwd", fresh="~/x", log_path="x"), live)
    assert vars(live) == {"log": "plain"}


@pytest.mark.parametrize("live", [Thing(net=th.nn.Linear(2, 1)), Thing(net=Callable(x=0))], ids=["module", "callable object"])
def test_an_attribute_that_can_be_called_is_filled_in_place_like_any_other(live):
    value, net = copy.deepcopy(live), live.net
    if isinstance(net, th.nn.Module):
        th.nn.init.constant_(value.net.weight, 0.5)
    else:
        value.net.x = 7
    restore(value, live)
    assert live.net is net
    assert net.weight.tolist() == [[0.5, 0.5]] if isinstance(net, th.nn.Module) else net.x == 7


def test_an_array_gets_memory_of_its_own():
    node, arrays = recorded(Thing(a=np.zeros(2), t=th.zeros(2), w=np.zeros(2)))
    one, two = Thing(), Thing()
    Restorer(arrays).value(node, one, "v")
    one.a += 1
    one.t += 1
    Restorer(arrays).value(node, two, "v")
    assert two.a.tolist() == two.t.tolist() == [0, 0]


def test_a_window_into_foreign_memory_is_filled_in_place():
    memory = bytearray(16)
    live = np.frombuffer(memory, np.float64)
    assert restore(np.array([1.5, 2.5]), live) is live
    assert np.frombuffer(bytes(memory), np.float64).tolist() == [1.5, 2.5]


@pytest.mark.parametrize("value", [np.zeros(3), np.zeros((2, 1)), np.zeros(2, np.float32)], ids=repr)
def test_a_window_of_another_shape_or_dtype_is_a_mismatch(value):
    live = np.frombuffer(bytearray(16), np.float64)
    with pytest.raises(MismatchError):
        restore(value, live)


def test_an_array_is_made_where_a_read_only_one_is():
    live = np.frombuffer(b"abcd", np.uint8)
    assert restore(np.array([1, 2, 3, 4], np.uint8), live).tolist() == [1, 2, 3, 4]


def test_a_state_of_its_own_is_given_back():
    live = OwnState()
    assert restore(OwnState([1, {"a": 2}]), live) is live
    assert live.x == [1, {"a": 2}]


def test_values_that_fit_fewer_live_ones_are_made_anew():
    assert restore([[1], [2], np.ones(1)], [[0]])[:2] == [[1], [2]]
    assert restore((1, 2), None) == (1, 2)
    assert restore(Point(1, 2), Point(0, 0)) == Point(1, 2)


# Nodes from a stranger


@pytest.mark.parametrize(
    "node",
    [
        *({}, {"": 1}, {"unknown": 1}, {"__class__": 1}, {"eval": "1"}, {"LIST": []}, {"pickle": "x"}, {"object ": "a"}),
        *(
            {"list": 5},
            {"list": None},
            {"list": "missing"},
            {"tuple": 1.5},
            {"set": {}, "x": 1} | {"set": 5},
            {"set": [{"list": []}]},
        ),
        *({"frozenset": [{"dict": []}]}, {"deque": []}, {"deque": [], "maxlen": -1}, {"deque": [], "maxlen": "x"}),
        *({"deque": [], "maxlen": 1.5}, {"deque": [], "maxlen": 10**30}, {"deque": None, "maxlen": None}),
        *(
            {"dict": 1},
            {"dict": [1]},
            {"dict": [[1]]},
            {"dict": [[1, 2, 3]]},
            {"dict": [[{"list": []}, 1]]},
            {"dict": {"a": 1}},
        ),
        *({"float": "x"}, {"float": None}, {"float": {}}, {"float": []}, {"float": HUGE}, {"float": -HUGE}),
        *({"array": "missing"}, {"array": None}, {"array": []}, {"array": {}}, {"array": 5}),
        *({"scalar": "missing"}, {"scalar": []}, {"bytes": "missing"}, {"bytes": {}}, {"enum": "A"}, {"enum": None}),
        *(
            {"tensor": "missing", "dtype": "float32"},
            {"tensor": "a"},
            {"tensor": {}, "dtype": "float32"},
            {"tensor": [], "dtype": 1},
        ),
        *({"same": "unknown"}, {"same": "v"}, {"same": None}, {"same": []}, {"same": {}}, {"live": None}, {"live": {"a": 1}}),
        *({"generator": "PCG65", "state": {}}, {"generator": "PCG64"}, {"generator": "PCG64", "state": None}),
        *({"generator": "default_rng", "state": {}}, {"generator": "seed", "state": 1}, {"generator": [], "state": 1}),
        *(
            {"generator": "PCG64", "state": {"dict": []}},
            {"generator": "MT19937", "state": {"dict": [["bit_generator", "PCG64"]]}},
        ),
        *({"random_state": None}, {"random_state": {}}, {"random_state": {"dict": []}}, {"random_state": {"tuple": [1, 2]}}),
        *({"random": None}, {"random": 5}, {"random": {"tuple": []}}, {"random": {"tuple": [3, {"tuple": []}, None]}}),
        *({"random": {"tuple": [3, {"tuple": [-1] * 625}, None]}}, {"random": {"tuple": [3, {"tuple": [HUGE] * 625}, None]}}),
        *(
            {"random": {"tuple": [9, {"tuple": [1] * 625}, None]}},
            {"random": {"tuple": [3, {"tuple": [1] * 624 + [999]}, None]}},
        ),
        *({"torch_generator": None}, {"torch_generator": 5}, {"torch_generator": {"tensor": "a", "dtype": "float32"}}),
        *(
            {"space": []},
            {"space": None},
            {"module": {}},
            {"module": None},
            {"module": {"dict": []}},
            {"optimizer": {"dict": []}},
        ),
        *({"object": None}, {"object": "builtins.NoneType"}, {"object": "builtins.NoneType", "state": {}}, {"object": []}),
        *({"object": "os.system", "state": {}}, {"object": "builtins.eval", "state": {"a": 1}}),
    ],
    ids=lambda node: repr(node)[:70],
)
def test_a_node_that_no_recorder_makes_is_a_mismatch(node):
    with pytest.raises(MismatchError):
        make_of(node, None, a=np.zeros(3, np.float32))


@pytest.mark.parametrize(
    "strides",
    [[-4], [8], [4, 4], [], [2**62], [HUGE], [-HUGE], ["4"], [None], [4.5], 4, None, "4", {}, [[4]], [math.nan], [5]],
    ids=lambda strides: repr(strides)[:9],
)
@pytest.mark.parametrize("kind", ["array", "tensor"])
def test_an_array_that_would_lie_beyond_its_memory_is_a_mismatch(kind, strides):
    with pytest.raises(MismatchError):
        make_of({kind: ["a", strides], "dtype": "float32"}, a=np.zeros(3, np.float32))


@pytest.mark.parametrize(
    "change",
    [
        *(
            {"offset": 10**9},
            {"offset": -4},
            {"offset": 4},
            {"offset": HUGE},
            {"offset": None},
            {"shape": [4]},
            {"shape": [-1]},
        ),
        *({"shape": [2**62]}, {"shape": None}, {"shape": [3, 1]}, {"strides": [8]}, {"strides": [-4]}, {"strides": []}),
        *(
            {"strides": [HUGE]},
            {"dtype": "float64"},
            {"dtype": "O"},
            {"dtype": "object"},
            {"dtype": None},
            {"view": 5},
            {"view": None},
        ),
    ],
    ids=lambda change: repr(change)[:25],
)
def test_a_view_beyond_its_array_is_a_mismatch(change):
    node = {"view": {"array": "a"}, "dtype": "float32", "shape": [3], "strides": [4], "offset": 0}
    assert make_of(node, a=np.arange(3, dtype=np.float32)).tolist() == [0, 1, 2]
    with pytest.raises(MismatchError):
        make_of(node | change, a=np.arange(3, dtype=np.float32))


@pytest.mark.parametrize(
    "change",
    [
        {"dtype": "O"},
        {"dtype": "<U9"},
        {"dtype": None},
        {"shape": [9]},
        {"shape": [-9]},
        {"shape": [HUGE]},
        {"text_array": "b"},
    ],
    ids=repr,
)
def test_an_array_of_texts_beyond_its_bytes_is_a_mismatch(change):
    with pytest.raises(MismatchError):
        make_of({"text_array": "a", "dtype": "<U1", "shape": [3]} | change, a=np.zeros(12, np.uint8))


@pytest.mark.parametrize("name", ["seed", "default_rng", "RandomState", "rand", "test"])
def test_a_node_cannot_name_what_is_called_to_make_a_generator(name, monkeypatch):
    calls = []
    monkeypatch.setattr(np.random, name, lambda *args: calls.append(name))
    with pytest.raises(MismatchError):
        make_of({"generator": name, "state": {"dict": []}})
    assert calls == []


def numbers_of(kind, **changes):
    state = generator_of(kind, 1).bit_generator.state
    state["state"].update({name: value for name, value in changes.items() if name in state["state"]})
    state.update({name: value for name, value in changes.items() if name in state and name != "state"})
    recorder = Recorder()
    return {"generator": kind, "state": recorder.node(state, "s")}, recorder.arrays


@pytest.mark.parametrize("value", [HUGE, -1, "x", None, 1.5, [], 2**128], ids=lambda value: repr(value)[:9])
@pytest.mark.parametrize("kind", ["PCG64", "PCG64DXSM"])
@pytest.mark.parametrize("name", ["inc", "uinteger", "has_uint32", "bit_generator"])
def test_absurd_numbers_for_a_generator_raise_nothing_but_mismatches(kind, name, value):
    node, arrays = numbers_of(kind, **{name: value})
    try:
        back = Restorer(arrays).value(node, None, "v")
    except MismatchError:
        return
    assert 0 <= back.random() < 1


@pytest.mark.parametrize("place", [-1, -(2**30), 625, 2**30])
def test_a_generator_that_would_read_beyond_its_memory_is_a_mismatch(place):
    for kind, name in (("MT19937", "pos"), ("Philox", "buffer_pos")):
        node, arrays = numbers_of(kind, **{name: place})
        with pytest.raises(MismatchError):
            Restorer(arrays).value(node, None, "v")


@pytest.mark.parametrize("place", [-1, -(2**30), 625, 2**30])
def test_a_random_state_that_would_read_beyond_its_memory_is_a_mismatch(place):
    state = np.random.RandomState(1).get_state(legacy=False)
    state["state"]["pos"] = place
    recorder = Recorder()
    node = {"random_state": recorder.node(state, "s")}
    with pytest.raises(MismatchError):
        Restorer(recorder.arrays).value(node, None, "v")


@pytest.mark.parametrize("kind", ["list", "tuple", "dict", "object"])
@pytest.mark.parametrize("depth", [10, 300, 5000])
def test_a_node_of_any_depth_is_restored_or_a_mismatch(kind, depth):
    node, live = 1, Thing()
    live.x = live
    for _ in range(depth):
        content = {"dict": [[1, node]], "object": qualified_name(Thing)}.get(kind, [node])
        node = {kind: content, "state": {"x": node}} if kind == "object" else {kind: content}
    if depth == 5000:
        with pytest.raises(MismatchError):
            make_of(node, live)
    else:
        assert restore_or_mismatch(node, live, {}) >= (depth == 10)


@pytest.mark.parametrize("name", ["other.Thing", "Thing", "builtins.object", "", None, 5, [], {}], ids=repr)
def test_an_object_of_another_class_is_a_mismatch_and_stays_as_it_is(name):
    live = Thing(x=1)
    with pytest.raises(MismatchError):
        make_of({"object": name, "state": {"x": 2}}, live)
    assert vars(live) == {"x": 1}


@pytest.mark.parametrize("state", [None, 5, "x", [], ["x"], [["x", 1]]], ids=repr)
def test_a_state_that_is_no_dict_is_a_mismatch(state):
    with pytest.raises(MismatchError):
        make_of({"object": qualified_name(Thing), "state": state}, Thing(x=1))


@pytest.mark.parametrize("name", ["method", "of_class", "__init__", "__class__", "__setattr__", "__reduce__", "__eq__"])
@pytest.mark.parametrize("node", [5, None, "x", {"list": []}, {"live": None}], ids=repr)
def test_a_node_cannot_hide_a_method(name, node):
    live = Thing(x=1)
    with pytest.raises(MismatchError):
        make_of(object_node(live, **{name: node}), live)
    assert vars(live) == {"x": 1}


@pytest.mark.parametrize("node", [5, None, {"dict": []}, {"live": None}], ids=repr)
def test_a_node_cannot_take_the_place_of_a_function_that_an_object_has(node):
    live = Thing(f=len)
    with pytest.raises(MismatchError):
        make_of(object_node(live, f=node), live)
    assert live.f is len


@pytest.mark.parametrize(
    "name",
    [
        "__dict__",
        "__doc__",
        "__module__",
        "__weakref__",
        "__slots__",
        "__deepcopy__",
        "__array__",
        "__wrapped__",
        "__getattr__",
    ],
)
def test_a_node_cannot_set_a_name_of_pythons_own(name):
    live = Thing(x=1)
    with pytest.raises(MismatchError):
        make_of(object_node(live, **{name: 5}), live)
    assert vars(live) == {"x": 1}


@pytest.mark.parametrize("name", ["", "a b", "a.b", "1a", "a/b", "x\0", "a-b", "\ud800", "()"], ids=repr)
def test_a_name_that_is_no_identifier_is_a_mismatch(name):
    live = Thing(x=1)
    with pytest.raises(MismatchError):
        make_of(object_node(live, **{name: 5}), live)
    assert vars(live) == {"x": 1}


def test_a_node_cannot_lend_a_function_another_name():
    live = Thing(hooks=[len], x=1)
    node = object_node(live, hooks={"list": [{"live": None}]}, __deepcopy__={"same": "v/hooks/0"})
    with pytest.raises(MismatchError):
        make_of(node, live)
    assert "__deepcopy__" not in vars(live)


def test_a_node_cannot_reach_into_a_module():
    module = types.ModuleType("like_sys")
    module.path = ["here"]
    live = Thing(np=module)
    node = object_node(live, np={"object": "builtins.module", "state": {"path": {"list": ["elsewhere"]}}})
    with pytest.raises(MismatchError):
        make_of(node, live)
    with pytest.raises(MismatchError):
        make_of({"list": [node["state"]["np"]]}, [module])
    assert module.path == ["here"]


def some_function():
    raise AssertionError("called")


@pytest.mark.parametrize(
    "live",
    [
        *(some_function, Thing().method, Thing, Mood, Mood.CALM, logging.NullHandler(), threading.Event()),
        *(gym.spaces.Discrete(2), th.nn.Linear(1, 1), functools.partial(some_function)),
    ],
    ids=lambda live: type(live).__name__,
)
def test_a_node_cannot_fill_in_attributes_of_what_is_not_recorded_by_them(live):
    before = dict(vars(live))
    with pytest.raises(MismatchError):
        make_of(object_node(live, attribute=5), live)
    assert dict(vars(live)) == before


def test_a_node_cannot_have_set_state_called_where_a_recorder_would_not_have():
    live = SetsOnly()
    with pytest.raises(MismatchError):
        make_of({**object_node(live), "own": 5}, live)
    assert live.calls == []


def test_an_own_state_for_an_object_without_one_is_a_mismatch():
    with pytest.raises(MismatchError):
        make_of({**object_node(Thing()), "own": 5}, Thing())


def test_an_enumeration_has_no_other_members():
    for name in ("SAD", "__class__", "mro", None, 5, []):
        with pytest.raises(MismatchError):
            make_of({"enum": name}, Mood.CALM)
    assert make_of({"enum": "WILD"}, Mood.CALM) is Mood.WILD


class Trap(Thing):
    """Fails the test if anything is called on it."""

    def __init__(self):
        vars(self).update(x=1, row=[0], part=Thing(y=1), hooks=[self.hook])

    def hook(self, *args):
        raise AssertionError("called")

    __call__ = __setattr__ = __len__ = __iter__ = hook
    run = reset = seed = close = set_state = hook


LIVES = {
    "None": lambda: None,
    "int": lambda: 5,
    "str": lambda: "text",
    "list": lambda: [1, [2], Thing(x=1)],
    "tuple": lambda: (1, Point(1, 2)),
    "dict": lambda: {"x": 1, "y": {"a": 2}},
    "ordered": lambda: OrderedDict(a=1),
    "deque": lambda: deque([1], 5),
    "point": lambda: Point(1, [2]),
    "array": lambda: np.zeros((2, 3)),
    "window": lambda: np.frombuffer(bytearray(24), np.float64),
    "tensor": lambda: th.zeros(2, 3),
    "generator": lambda: np.random.default_rng(0),
    "random_state": lambda: np.random.RandomState(0),
    "random": lambda: random.Random(0),
    "torch_generator": th.Generator,
    "space": lambda: gym.spaces.Dict(a=gym.spaces.Discrete(3), b=gym.spaces.Tuple([gym.spaces.Discrete(2)])),
    "module": lambda: th.nn.Linear(2, 2),
    "optimizer": lambda: th.optim.Adam(th.nn.Linear(2, 2).parameters()),
    "thing": lambda: Thing(x=1, part=Thing(y=2), row=[1, 2]),
    "own": OwnState,
    "trap": Trap,
    "enum": lambda: Mood.CALM,
    "function": lambda: lambda: None,
    "class": lambda: Thing,
}
ARRAYS = {
    "a": np.zeros(3, np.float32),
    "b": np.array(7),
    "c": np.zeros((2, 0), bool),
    "s": np.arange(624, dtype=np.uint32),
    "t": np.zeros(5056, np.uint8),
}
names = st.sampled_from(
    [
        *ARRAYS,
        *MAKERS,
        *BIT_GENERATORS,
        "x",
        "row",
        "part",
        "v",
        "v/0",
        "v/x",
        "dtype",
        "bfloat16",
        "state",
        "own",
        "maxlen",
        "key",
    ]
) | st.sampled_from(
    [*(qualified_name(type(make())) for make in LIVES.values()), "bit_generator", "pos", "CALM", "__class__", "nan"]
)
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=3)
    | names
    | st.sampled_from([HUGE, -HUGE, 2**64])
)


def dicts_of(parts):
    def kinds(kind):
        more = st.dictionaries(st.sampled_from(["state", "dtype", "maxlen", "own"]) | names, parts, max_size=3)
        return st.builds(lambda content, rest: {kind: content} | rest, parts, more)

    pairs = st.lists(st.lists(parts, min_size=2, max_size=2), max_size=3).map(lambda items: {"dict": items})
    objects = st.builds(
        lambda name, state: {"object": name, "state": state},
        names,
        st.dictionaries(names | st.text(max_size=3), parts, max_size=3),
    )
    return st.sampled_from(list(MAKERS)).flatmap(kinds) | pairs | objects


json_values = st.recursive(
    scalars,
    lambda parts: st.lists(parts, max_size=4) | dicts_of(parts) | st.dictionaries(names, parts, max_size=3),
    max_leaves=10,
)


def restore_or_mismatch(node, live, arrays):
    restorer = Restorer({name: array.copy() for name, array in arrays.items()})
    try:
        restorer.value(json.loads(json.dumps(node)), live, "v")
    except MismatchError:
        return False
    return True


@pytest.mark.parametrize("kind", LIVES)
@settings(max_examples=15)
@given(node=dicts_of(json_values))
def test_any_json_is_restored_or_a_mismatch(kind, node):
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


RICH = recorded(rich_value())
PLACES = [place for place in places_in(RICH[0]) if len(place) < 9]


@given(place=st.sampled_from(PLACES[1:]), change=st.sampled_from(["replace", "delete", "rename"]), value=json_values)
def test_a_recorded_node_with_one_place_changed_is_restored_or_a_mismatch(place, change, value):
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
def test_arrays_under_each_others_names_are_restored_or_a_mismatch(name, other):
    restore_or_mismatch(RICH[0], rich_value(), RICH[1] | {name: RICH[1][other], other: RICH[1][name]})


@given(name=st.sampled_from(sorted(RICH[1])))
def test_a_missing_array_is_a_mismatch(name):
    arrays = {path: array for path, array in RICH[1].items() if path != name}
    assert not restore_or_mismatch(RICH[0], rich_value(), arrays)


def test_the_unchanged_node_is_restored():
    live = rich_value()
    live.row, live.rng[0] = None, np.random.default_rng(9)
    assert restore_or_mismatch(*RICH[:1], live, RICH[1])
    assert live.row == [1, (2.5, None), {3}, deque([4], 5)]
    assert live.rng[0].random() == np.random.default_rng(1).random()


def test_what_is_not_recorded_must_be_there():
    with pytest.raises(MismatchError):
        make_of(LIVE, None)
    assert make_of(LIVE, len) is len
