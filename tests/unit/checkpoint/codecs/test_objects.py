"""Objects, and what stays as the script has made it."""

import copy
import functools
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
import torch as th
from helpers.codecs import Mood, OwnState, Slotted, Thing, decode, encode, object_of, round_trip

from sb3_trpo.checkpoint.codecs.codec import LIVE, MismatchError
from sb3_trpo.checkpoint.codecs.inspection import has_own_state, qualified_name


class SlottedWithDict(Thing):
    __slots__ = ("hidden",)


def test_objects_that_refer_to_themselves_and_to_each_other_are_restored():
    thing, live = Thing(x=1, child=Thing(y=2)), Thing(x=0, child=Thing(y=0))
    for each in (thing, live):
        each.me = each.child.parent = each
    assert round_trip(thing, live) is live
    assert (live.x, live.child.y) == (1, 2)
    assert live.me is live.child.parent is live


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
    node, encoder = encode(type("Screen", (Thing,), {"__module__": module})(x=1))
    assert node == LIVE
    assert not encoder.unsupported


@pytest.mark.parametrize("module", ["logging_env.sim", "socketed", "wandb_tools", "threadings", "concurrently.env", "cv2x"])
def test_modules_with_similar_names_are_not_left_alone(module):
    node, _ = encode(type("Simulator", (Thing,), {"__module__": module})(x=1))
    assert node == {"object": f"{module}.Simulator", "state": {"x": 1}}


def test_an_object_is_encoded_by_its_attributes():
    node, encoder = encode(Thing(x=1, a=np.zeros(2), f=len, part=Thing(y=[2])))
    part = object_of(Thing(), y={"list": [2]})
    assert node == object_of(Thing(), x=1, a={"array": "v/a"}, part=part)
    assert not encoder.unsupported


def test_file_paths_and_what_describes_an_env_are_no_state():
    node, _ = encode(Thing(log="/tmp/log", plain="log", files=["a/b"], spec=1, render_mode="human", metadata={}))
    assert node["state"] == {"plain": "log", "files": {"list": ["a/b"]}}


@pytest.mark.parametrize(
    "part",
    [Slotted(), re.finditer("a", "a"), struct.Struct("d"), memoryview(b"a"), SlottedWithDict(), iter([1]), object()],
    ids=lambda part: type(part).__name__,
)
def test_an_object_with_an_unsupported_attribute_is_encoded_by_its_generators_only(part):
    generator, space = np.random.default_rng(0), gym.spaces.Discrete(2)
    node, encoder = encode(Thing(x=1, a=np.zeros(2), rng=generator, space=space, part=part, row=[0.5] * 9))
    assert encoder.unsupported == {"v/part": qualified_name(type(part))}
    assert node["state"].keys() == {"rng", "space"}
    assert all(path.startswith(("v/rng", "v/space")) for path in encoder.arrays)


def test_an_unsupported_attribute_deep_down_is_named_by_its_path():
    _, encoder = encode([Thing(parts={"a": [1, Thing(b=Slotted())]})])
    assert encoder.unsupported == {"v/0/parts/0/1/b": qualified_name(Slotted)}


def test_what_an_unsupported_object_shares_with_others_is_encoded_with_them():
    shared = np.arange(3)
    node, encoder = encode([Thing(a=shared, part=Slotted()), shared])
    live = [Thing(a=None, part=Slotted()), None]
    assert decode(node, live, **encoder.arrays)[1].tolist() == [0, 1, 2]


def test_what_was_encoded_before_an_unsupported_object_is_still_known_after_it():
    shared = [1]
    node, _ = encode([shared, Thing(a=shared, part=Slotted()), shared])
    assert node["list"][2] == {"same": "v/0"}


def test_an_unsupported_object_does_not_affect_its_neighbour():
    node, encoder = encode([Thing(part=Slotted(), x=1), Thing(y=2)])
    assert [each["state"] for each in node["list"]] == [{}, {"y": 2}]
    assert encoder.unsupported.keys() == {"v/0/part"}


def test_a_wrapped_env_is_encoded_even_if_its_wrapper_is_unsupported():
    inner = gym.Env()
    inner.x = 3
    wrapper = gym.Wrapper(inner)
    wrapper.part, wrapper.y = Slotted(), 4
    node, _ = encode(wrapper)
    assert node["state"]["env"]["state"]["x"] == 3
    assert "y" not in node["state"]


def test_get_state_and_set_state_are_used_where_an_object_has_them_beside_its_generators():
    assert encode(OwnState(5))[0] == {**object_of(OwnState()), "own": {"dict": [["secret", 5]]}}
    value, live = OwnState([1, 2]), OwnState(0)
    value.rng, live.rng = np.random.default_rng(1), np.random.default_rng(2)
    assert round_trip(value, live) is live
    assert live.secret == [1, 2]
    assert live.rng.random() == value.rng.random()


def test_an_unsupported_value_from_get_state_leaves_the_rest_restorable():
    value, live = OwnState(Slotted()), OwnState("there")
    value.rng, live.rng = np.random.default_rng(1), np.random.default_rng(2)
    node, encoder = encode(value)
    assert list(encoder.unsupported.values()) == [qualified_name(Slotted)]
    decode(node, live, **encoder.arrays)
    assert live.rng.random() == value.rng.random()


class LikeMuJoCo:
    def __init__(self):
        self.x = 1

    def get_state(self):
        raise AssertionError("not to be asked")

    def set_state(self, qpos, qvel):
        raise AssertionError("not to be asked")


def test_a_set_state_of_positions_and_velocities_is_not_used():
    assert not has_own_state(LikeMuJoCo())
    assert encode(LikeMuJoCo())[0] == object_of(LikeMuJoCo(), x=1)


class Callable(Thing):
    def __call__(self):
        raise AssertionError("called")


def test_an_object_is_filled_in_place():
    live = Thing(x=0, part=Thing(y=0), extra="stays", f=len)
    part = live.part
    assert round_trip(Thing(x=1, part=Thing(y=[2.5]), new={"a": 1}, f=len), live) is live
    assert live.part is part
    assert vars(part) == {"y": [2.5]}
    assert (live.x, live.new, live.extra, live.f) == (1, {"a": 1}, "stays", len)


def test_objects_in_lists_and_dicts_are_filled_in_place():
    first, second = Thing(x=0), Thing(x=0)
    back = round_trip([Thing(x=1), {"a": Thing(x=2)}], [first, {"a": second}])
    assert (back[0], back[1]["a"]) == (first, second)
    assert (first.x, second.x) == (1, 2)


def test_a_callable_attribute_is_filled_in_place_like_any_other():
    live = Thing(net=th.nn.Linear(2, 1), function=Callable(x=0))
    value, net, function = copy.deepcopy(live), live.net, live.function
    th.nn.init.constant_(value.net.weight, 0.5)
    value.function.x = 7
    round_trip(value, live)
    assert (live.net, live.function) == (net, function)
    assert net.weight.tolist() == [[0.5, 0.5]]
    assert function.x == 7


@pytest.mark.parametrize("name", ["other.Thing", "Thing", "builtins.object", "", None, 5, [], {}], ids=repr)
def test_an_object_of_another_class_is_refused_and_stays_as_it_is(name):
    live = Thing(x=1)
    with pytest.raises(MismatchError):
        decode({"object": name, "state": {"x": 2}}, live)
    assert vars(live) == {"x": 1}


@pytest.mark.parametrize("state", [None, 5, "x", [], ["x"], [["x", 1]]], ids=repr)
def test_a_state_that_is_not_a_dict_is_refused(state):
    with pytest.raises(MismatchError):
        decode(object_of(Thing()) | {"state": state}, Thing(x=1))


def test_an_encoding_cannot_change_a_module():
    module = types.ModuleType("like_sys")
    module.path = ["here"]
    inside = {"object": "builtins.module", "state": {"path": {"list": ["elsewhere"]}}}
    for live, node in ((Thing(np=module), object_of(Thing(), np=inside)), ([module], {"list": [inside]})):
        with pytest.raises(MismatchError):
            decode(node, live)
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


class SetsOnly:
    """Has a ``set_state`` that no encoder would have used."""

    def set_state(self, state):
        raise AssertionError("called")


@pytest.mark.parametrize("live", [SetsOnly(), Thing()], ids=["only set_state", "neither"])
def test_a_state_is_refused_where_an_object_has_not_both_get_state_and_set_state(live):
    with pytest.raises(MismatchError):
        decode({**object_of(live), "own": 5}, live)


def test_an_object_may_have_been_shared_with_another_place_in_the_script():
    things, others = [Thing(x=x) for x in (0, 1, 9)], [Thing(x=x) for x in (5, 6, 7)]
    live = Thing(best=others[0], things=others)
    round_trip(Thing(best=things[2], things=things), live)
    assert [each.x for each in live.things] == [0, 1, 9]
    assert live.best is live.things[2]
