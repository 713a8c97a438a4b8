"""Plain values."""

import enum
import json
import math
from datetime import date, datetime, timedelta
from decimal import Decimal
from fractions import Fraction

import pytest
from helpers.codecs import FLOATS, INTS, STRINGS, Level, Mood, decode, encode, is_same, round_trip

from sb3_trpo.checkpoint.codecs.codec import LIVE, MismatchError


class Right(enum.Flag):
    READ = 1
    WRITE = 2


@pytest.mark.parametrize("value", [None, True, False, *INTS, *FLOATS, *STRINGS, b"", b"\0\xff" * 5], ids=repr)
def test_a_scalar_is_restored_alone_and_in_a_list(value):
    assert is_same(round_trip(value), value)
    assert is_same(round_trip([value, [value]]), [value, [value]])


DATES = [datetime(2024, 2, 29, 1, 2, 3, 4), date(2024, 2, 29), timedelta(-1, 2, 3)]


@pytest.mark.parametrize("value", [1 - 2j, Decimal("1.10"), Fraction(-1, 3), range(9, 2, -3), *DATES], ids=repr)
def test_a_value_that_a_text_describes_in_full_is_restored(value):
    assert is_same(round_trip(value), value)


def test_a_subclass_of_a_type_with_a_text_is_reported():
    special = type("Decimal", (Decimal,), {})("1.10")
    node, encoder = encode(special)
    assert node == LIVE
    assert encoder.unsupported.keys() == {"v"}


def test_an_integer_that_python_would_not_read_from_text_is_reported():
    _, encoder = encode([2**8000, 10**5000])
    assert encoder.unsupported == {"v/1": "builtins.int"}
    assert round_trip(2**8000) == 2**8000


def test_encodings_are_strict_json():
    value = [math.nan, math.inf, -math.inf]
    text = json.dumps(encode(value)[0], allow_nan=False)
    assert is_same(decode(json.loads(text)), value)


def test_a_bytearray_is_restored_and_can_be_changed():
    back = round_trip(bytearray(b"abc"), live=bytearray())
    back.append(1)
    assert type(back) is bytearray
    assert back == b"abc\x01"


@pytest.mark.parametrize("value", [*Mood, *Level, Right.READ, Right.READ | Right.WRITE, Right(0)], ids=repr)
def test_a_member_of_an_enumeration_is_restored_itself(value):
    assert round_trip(value, live=next(iter(type(value)))) is value


def test_members_of_enumerations_as_keys_and_in_sets_are_restored():
    value = {"moods": {Mood.CALM: 1, Mood.WILD: 2}, "levels": {Level.LOW}}
    live = {"moods": {Mood.CALM: 0, Mood.WILD: 0}, "levels": {Level.LOW}}
    assert is_same(round_trip(value, live), value)


def test_only_names_of_members_are_looked_up_in_an_enumeration():
    for name in ("SAD", "__class__", "mro", None, 5, []):
        with pytest.raises(MismatchError):
            decode({"enum": name}, Mood.CALM)
    assert decode({"enum": "WILD"}, Mood.CALM) is Mood.WILD


def test_a_list_of_members_of_an_enumeration_may_have_grown():
    assert round_trip([Mood.CALM, Mood.WILD, Mood.WILD], live=[Mood.CALM]) == [Mood.CALM, Mood.WILD, Mood.WILD]
