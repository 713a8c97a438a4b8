"""Which parts of an action matter to which option of a choice, as a user writes it, and what is refused."""

import json

import pytest
from gymnasium import spaces
from helpers.hybrid import NESTED, NESTED_PARAMETERS, PLATFORM, PLATFORM_PARAMETERS

from sb3_trpo.distributions.product import Activity
from sb3_trpo.rollouts.action_parameters import read_action_parameters
from sb3_trpo.rollouts.hybrid_space import HybridSpace

FLAT = HybridSpace(PLATFORM)
TWO = HybridSpace(spaces.Dict(a=spaces.Discrete(2), b=spaces.Discrete(2), x=spaces.Box(0.0, 1.0), y=spaces.Box(0.0, 1.0)))


def only(choice, *options):
    return Activity(choice, options)


def test_without_any_all_parts_always_matter():
    assert read_action_parameters(None, FLAT) == [None] * 4
    assert read_action_parameters({}, FLAT) == [None] * 4


def test_options_take_the_parts_that_are_named():
    expected = [None, only(0, True, False, False), only(0, False, True, False), only(0, False, False, True)]
    assert read_action_parameters(PLATFORM_PARAMETERS, FLAT) == expected
    assert read_action_parameters({"0": [["1/0"], ["1/1"], ["1/2"]]}, FLAT) == expected


def test_a_level_means_all_its_parts_and_what_no_option_takes_always_matters():
    # "kind" is the fourth part in Gymnasium's order: aim/0, aim/1, grid, kind, level, power.
    first, second = only(3, True, True, False), only(3, True, False, False)
    expected = [first, second, None, None, None, second]
    assert read_action_parameters(NESTED_PARAMETERS, HybridSpace(NESTED)) == expected


def test_what_every_option_takes_always_matters():
    assert read_action_parameters({0: ["1", "1", ["1/0", "1/1", "1/2"]]}, FLAT) == [None] * 4


def test_several_choices_have_parameters_of_their_own():
    found = read_action_parameters({"a": ["x", None], "b": [None, "y"]}, TWO)
    assert found == [None, None, only(0, True, False), only(1, False, True)]


@pytest.mark.parametrize("given", [PLATFORM_PARAMETERS, {0: ["1/0", ["1/1", "1/2"], None]}])
def test_saved_models_read_the_same(given):
    """SB3 keeps the keywords of a policy as JSON."""
    assert read_action_parameters(json.loads(json.dumps(given)), FLAT) == read_action_parameters(given, FLAT)


REFUSED = {
    "no dict": (FLAT, ["1/0"], r"action_parameters is \['1/0'\], but must be a dict"),
    "unknown choice": (FLAT, {"kind": [None] * 3}, "names 'kind'.*parts are '0', '1/0', '1/1', '1/2'"),
    "unknown part": (FLAT, {0: ["1/0", "1/3", None]}, "names '1/3'.*nothing of this name"),
    "tuple": (FLAT, {0: [(1, 0), None, None]}, r"names \(1, 0\).*Write \(1, 0\) as '1/0'"),
    "too few options": (FLAT, {0: ["1/0", "1/1"]}, "choice 0, but must have a list with one entry for each of its 3 options"),
    "no list": (FLAT, {0: "1/0"}, "must have a list"),
    "a Box": (FLAT, {"1/0": [None]}, r"choice '1/0', where the action space has Box.*only a Discrete"),
    "a level": (FLAT, {1: [None]}, "choice 1, where the action space has a Tuple or Dict"),
    "one choice by two names": (FLAT, {0: ["1/0", None, None], "0": [None, "1/1", None]}, "has the choice '0' twice"),
    "itself": (FLAT, {0: ["0", None, None]}, "'0' is itself a choice"),
    "a chosen choice": (TWO, {"a": ["b", None], "b": ["x", "y"]}, "makes 'b' a parameter of the choice 'a'"),
    "two choices": (TWO, {"a": ["x", None], "b": [None, "x"]}, "makes 'x' a parameter of two choices, 'a' and 'b'"),
}


@pytest.mark.parametrize(("space", "given", "message"), REFUSED.values(), ids=REFUSED)
def test_nonsense_is_refused_by_name(space, given, message):
    with pytest.raises(ValueError, match=message):
        read_action_parameters(given, space)
