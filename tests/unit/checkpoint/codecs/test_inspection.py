"""What can be learned about classes and values by looking at them."""

import numpy as np
import pytest
from helpers.codecs import Thing, encode

from sb3_trpo.checkpoint.codecs.inspection import fingerprint, has_own_state


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
    assert has_own_state(type("Any", (), methods)()) is expected


def test_methods_of_an_instance_alone_do_not_count_as_a_state_of_its_own():
    assert not has_own_state(Thing(get_state=lambda: 1, set_state=lambda state: None))


@pytest.mark.parametrize("change", [lambda v: v["a"].__setitem__(0, 9), lambda v: v.update(b=2), lambda v: v["c"].append(1)])
def test_a_fingerprint_tells_a_change(change):
    def make():
        return {"a": np.zeros(2), "b": 1, "c": [0.5] * 9}

    value = make()
    change(value)
    prints = [fingerprint(node, encoder.arrays) for node, encoder in map(encode, (make(), value, make()))]
    assert prints[0] == prints[2] != prints[1]
