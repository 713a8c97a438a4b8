"""What can be learned about classes and values by looking at them."""

import numpy as np
import pytest
from helpers.codecs import Thing, encode

from sb3_trpo import TRPO, maskable, policies, recurrent
from sb3_trpo.checkpoint.codecs.inspection import fingerprint, has_own_state, qualified_name
from sb3_trpo.zoo.memory_tasks import TMaze

NAMES = {
    TRPO: "sb3_trpo.trpo.TRPO",
    policies.MlpPolicy: "sb3_trpo.policies.MlpPolicy",
    maskable.MaskableTRPO: "sb3_trpo.maskable.MaskableTRPO",
    maskable.CnnPolicy: "sb3_trpo.maskable.CnnPolicy",
    recurrent.RecurrentTRPO: "sb3_trpo.recurrent.RecurrentTRPO",
    recurrent.MaskableRecurrentTRPO: "sb3_trpo.recurrent.MaskableRecurrentTRPO",
    recurrent.MlpLstmPolicy: "sb3_trpo.recurrent.MlpLstmPolicy",
    recurrent.MaskableRecurrentRolloutBuffer: "sb3_trpo.recurrent.MaskableRecurrentRolloutBuffer",
    recurrent.MaskableRecurrentEvalCallback: "sb3_trpo.recurrent.MaskableRecurrentEvalCallback",
    TMaze: "sb3_trpo.memory_tasks.TMaze",
}


@pytest.mark.parametrize("cls", NAMES, ids=lambda cls: cls.__name__)
def test_classes_have_the_names_that_are_in_checkpoints_of_the_first_version(cls):
    """Since then, some have moved to other files; a run under another name would be another run."""
    assert qualified_name(cls) == NAMES[cls]


def test_other_classes_have_the_names_of_their_modules():
    impostor = type("RecurrentTRPO", (), {"__module__": "sb3_trpo.recurrent.trpo"})
    assert qualified_name(impostor) == "sb3_trpo.recurrent.trpo.RecurrentTRPO"
    assert qualified_name(len) == "builtins.len"
    assert qualified_name(Thing.method) == f"{Thing.__module__}.Thing.method"


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


def test_methods_of_an_instance_alone_do_not_count():
    assert not has_own_state(Thing(get_state=lambda: 1, set_state=lambda state: None))


@pytest.mark.parametrize("change", [lambda v: v["a"].__setitem__(0, 9), lambda v: v.update(b=2), lambda v: v["c"].append(1)])
def test_a_fingerprint_tells_a_change(change):
    def make():
        return {"a": np.zeros(2), "b": 1, "c": [0.5] * 9}

    value = make()
    change(value)
    prints = [fingerprint(node, encoder.arrays) for node, encoder in map(encode, (make(), value, make()))]
    assert prints[0] == prints[2] != prints[1]
