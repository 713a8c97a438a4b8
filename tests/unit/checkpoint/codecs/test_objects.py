"""Objects, and what stays as the script has made it."""

import copy
import functools
import json
import logging
import math
import re
import struct
import threading
import types
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import safetensors.numpy
import torch as th
from helpers.codecs import (
    Mood,
    OwnState,
    Slotted,
    Thing,
    decode,
    encode,
    object_of,
    round_trip,
)
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sb3_trpo.checkpoint.codecs.arrays import NUMBERS
from sb3_trpo.checkpoint.codecs.codec import LIVE, Decoder, Encoder, MismatchError
from sb3_trpo.checkpoint.codecs.inspection import has_own_state, qualified_name
from sb3_trpo.checkpoint.codecs.registry import CODECS


class SlottedWithDict(Thing):
    __slots__ = ("hidden",)


class LikeMuJoCo:
    def __init__(self):
        self.x = 1

    def get_state(self):
        raise AssertionError("not to be asked")

    def set_state(self, qpos, qvel):
        raise AssertionError("not to be asked")


def through_files(node, arrays):
    return json.loads(json.dumps(node)), safetensors.numpy.load(safetensors.numpy.save(arrays))


number_dtypes = st.sampled_from(sorted(NUMBERS)).map(np.dtype)


arrays = hnp.arrays(number_dtypes, hnp.array_shapes(min_dims=0, min_side=0, max_side=4))


def test_an_object_that_refers_to_itself_is_restored():
    thing, live = Thing(x=1), Thing(x=0)
    thing.me, live.me = thing, live
    assert round_trip(thing, live).x == 1
    assert live.me is live


def test_a_child_that_refers_to_its_parent_is_restored():
    thing, live = Thing(x=1, child=Thing(y=2)), Thing(x=0, child=Thing(y=0))
    thing.child.parent, live.child.parent = thing, live
    round_trip(thing, live)
    assert (live.x, live.child.y) == (1, 2)
    assert live.child.parent is live


@pytest.mark.parametrize(
    "value",
    [
        *(len, print, math, int, Thing, functools.partial(len), property(), Path("a"), re.compile("a"), np.sin),
        *(np.dtype("f4"), th.float32, th.device("cpu"), logging.getLogger("a")),
        *(functools.partial(len, ()), types),
    ],
    ids=lambda value: type(value).__name__,
)
def test_functions_classes_and_the_like_are_left_to_the_script(value):
    node, encoder = encode(value)
    assert node == LIVE
    assert not encoder.unsupported


@pytest.mark.parametrize("module", ["pygame.surface", "threading", "wandb.sdk", "logging", "matplotlib.figure"])
def test_objects_that_draw_or_log_are_left_alone(module):
    cls = type("Screen", (Thing,), {"__module__": module})
    node, encoder = encode(cls(x=1))
    assert node == LIVE
    assert not encoder.unsupported


@pytest.mark.parametrize("module", ["logging_env.sim", "socketed", "wandb_tools", "threadings", "concurrently.env", "cv2x"])
def test_modules_with_similar_names_are_not_left_alone(module):
    cls = type("Simulator", (Thing,), {"__module__": module})
    node, _ = encode(cls(x=1))
    assert node == {"object": f"{module}.Simulator", "state": {"x": 1}}


def test_an_object_is_encoded_by_its_attributes():
    node, encoder = encode(Thing(x=1, a=np.zeros(2), f=len, part=Thing(y=[2])))
    assert node == {
        "object": qualified_name(Thing),
        "state": {"x": 1, "a": {"array": "v/a"}, "part": {"object": qualified_name(Thing), "state": {"y": {"list": [2]}}}},
    }
    assert not encoder.unsupported


def test_a_file_path_is_encoded_in_a_list_but_not_as_an_attribute():
    node, _ = encode(Thing(log="/tmp/log", plain="log", files=["a/b"]))
    assert node["state"] == {"plain": "log", "files": {"list": ["a/b"]}}


def test_attributes_that_describe_an_env_are_no_state_of_it():
    node, _ = encode(Thing(spec=1, render_mode="human", metadata={}, x=1))
    assert node["state"] == {"x": 1}


@pytest.mark.parametrize(
    "part",
    [Slotted(), re.finditer("a", "a"), struct.Struct("d"), memoryview(b"a"), SlottedWithDict(), iter([1]), object()],
    ids=lambda part: type(part).__name__,
)
def test_an_object_with_an_unsupported_attribute_is_encoded_by_its_generators_only(part):
    generator = np.random.default_rng(0)
    space = gym.spaces.Discrete(2)
    node, encoder = encode(Thing(x=1, a=np.zeros(2), rng=generator, space=space, part=part, row=[0.5] * 9))
    assert encoder.unsupported == {"v/part": qualified_name(type(part))}
    assert node["state"].keys() == {"rng", "space"}
    assert all(path.startswith(("v/rng", "v/space")) for path in encoder.arrays)


def test_an_unsupported_attribute_deep_down_is_named_by_its_path():
    _, encoder = encode([Thing(parts={"a": [1, Thing(b=Slotted())]})])
    assert encoder.unsupported == {"v/0/parts/0/1/b": qualified_name(Slotted)}


def test_what_an_unsupported_object_shares_with_others_is_encoded_with_them():
    shared = np.arange(3)
    encoder = Encoder(CODECS)
    nodes = encoder.encode_all([Thing(a=shared, part=Slotted()), shared], "v")
    node, arrays = through_files({"list": nodes}, encoder.arrays)
    live = [Thing(a=None, part=Slotted()), None]
    assert Decoder(CODECS, arrays).decode(node, live, "v")[1].tolist() == [0, 1, 2]


def test_what_was_encoded_before_an_unsupported_object_is_still_known_after_it():
    shared = [1]
    node, _ = encode([shared, Thing(a=shared, part=Slotted()), shared])
    assert node["list"][2] == {"same": "v/0"}


def test_an_unsupported_object_does_not_affect_its_neighbour():
    node, encoder = encode([Thing(part=Slotted(), x=1), Thing(y=2)])
    assert [each["state"] for each in node["list"]] == [{}, {"y": 2}]
    assert encoder.unsupported.keys() == {"v/0/part"}


def test_a_wrapped_env_is_encoded_even_if_its_wrapper_is_unsupported():
    class Inner(gym.Env):
        x = 0

    inner = Inner()
    inner.x = 3
    wrapper = gym.Wrapper(inner)
    wrapper.part, wrapper.y = Slotted(), 4
    node, _ = encode(wrapper)
    assert node["state"]["env"]["state"]["x"] == 3
    assert "y" not in node["state"]


def test_get_state_and_set_state_are_used_where_an_object_has_them():
    node, _ = encode(OwnState(5))
    assert node == {"object": qualified_name(OwnState), "state": {}, "own": {"dict": [["secret", 5]]}}
    live = OwnState(0)
    assert round_trip(OwnState([1, 2]), live) is live
    assert live.secret == [1, 2]


def test_generators_of_an_object_with_get_state_are_encoded_too():
    value, live = OwnState(5), OwnState(0)
    value.rng, live.rng = np.random.default_rng(1), np.random.default_rng(2)
    round_trip(value, live)
    assert live.rng.random() == value.rng.random()


def test_an_unsupported_value_from_get_state_leaves_the_rest_restorable():
    value, live = OwnState(Slotted()), OwnState("there")
    value.rng, live.rng = np.random.default_rng(1), np.random.default_rng(2)
    node, encoder = encode(value)
    assert list(encoder.unsupported.values()) == [qualified_name(Slotted)]
    Decoder(CODECS, encoder.arrays).decode(node, live, "v")
    assert live.rng.random() == value.rng.random()


def test_a_set_state_of_positions_and_velocities_is_not_used():
    assert not has_own_state(LikeMuJoCo())
    node, _ = encode(LikeMuJoCo())
    assert node == {"object": qualified_name(LikeMuJoCo), "state": {"x": 1}}


class Callable(Thing):
    def __call__(self):
        raise AssertionError("called")


class SetsOnly:
    """Has a ``set_state`` that no encoder would have used."""

    def __init__(self):
        self.calls = []

    def set_state(self, state):
        self.calls.append(state)


def test_an_object_is_filled_in_place():
    live = Thing(x=0, part=Thing(y=0), extra="stays", f=len)
    part = live.part
    assert round_trip(Thing(x=1, part=Thing(y=[2.5]), new={"a": 1}, f=len), live) is live
    assert live.part is part
    assert vars(part) == {"y": [2.5]}
    assert (live.x, live.new, live.extra, live.f) == (1, {"a": 1}, "stays", len)


def test_objects_in_lists_and_dicts_are_filled_in_place():
    live = [Thing(x=0), {"a": Thing(x=0)}]
    first, second = live[0], live[1]["a"]
    back = round_trip([Thing(x=1), {"a": Thing(x=2)}], live)
    assert back[0] is first
    assert back[1]["a"] is second
    assert (first.x, second.x) == (1, 2)


@pytest.mark.parametrize("live", [Thing(net=th.nn.Linear(2, 1)), Thing(net=Callable(x=0))], ids=["module", "callable object"])
def test_a_callable_attribute_is_filled_in_place_like_any_other(live):
    value, net = copy.deepcopy(live), live.net
    if isinstance(net, th.nn.Module):
        th.nn.init.constant_(value.net.weight, 0.5)
    else:
        value.net.x = 7
    round_trip(value, live)
    assert live.net is net
    assert net.weight.tolist() == [[0.5, 0.5]] if isinstance(net, th.nn.Module) else net.x == 7


@pytest.mark.parametrize("name", ["other.Thing", "Thing", "builtins.object", "", None, 5, [], {}], ids=repr)
def test_an_object_of_another_class_is_refused_and_stays_as_it_is(name):
    live = Thing(x=1)
    with pytest.raises(MismatchError):
        decode({"object": name, "state": {"x": 2}}, live)
    assert vars(live) == {"x": 1}


@pytest.mark.parametrize("state", [None, 5, "x", [], ["x"], [["x", 1]]], ids=repr)
def test_a_state_that_is_not_a_dict_is_refused(state):
    with pytest.raises(MismatchError):
        decode({"object": qualified_name(Thing), "state": state}, Thing(x=1))


def test_an_encoding_cannot_change_a_module():
    module = types.ModuleType("like_sys")
    module.path = ["here"]
    live = Thing(np=module)
    node = object_of(live, np={"object": "builtins.module", "state": {"path": {"list": ["elsewhere"]}}})
    with pytest.raises(MismatchError):
        decode(node, live)
    with pytest.raises(MismatchError):
        decode({"list": [node["state"]["np"]]}, [module])
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
def test_an_encoding_cannot_set_attributes_of_what_is_not_encoded_by_them(live):
    before = dict(vars(live))
    with pytest.raises(MismatchError):
        decode(object_of(live, attribute=5), live)
    assert dict(vars(live)) == before


def test_set_state_is_called_only_on_an_object_that_also_has_get_state():
    live = SetsOnly()
    with pytest.raises(MismatchError):
        decode({**object_of(live), "own": 5}, live)
    assert live.calls == []


def test_an_own_state_for_an_object_without_set_state_is_refused():
    with pytest.raises(MismatchError):
        decode({**object_of(Thing()), "own": 5}, Thing())


def test_an_object_may_have_been_shared_with_another_place_in_the_script():
    things, others = [Thing(x=x) for x in (0, 1, 9)], [Thing(x=x) for x in (5, 6, 7)]
    live = Thing(best=others[0], things=others)
    round_trip(Thing(best=things[2], things=things), live)
    assert [each.x for each in live.things] == [0, 1, 9]
    assert live.best is live.things[2]
