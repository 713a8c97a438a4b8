"""Values encoded and decoded as through a checkpoint, and objects to try it with."""

from __future__ import annotations

import enum
import json
import math
import struct
from collections import deque, namedtuple
from typing import Any

import numpy as np
import safetensors.numpy
import torch as th

from sb3_trpo.checkpoint.codecs.codec import Decoder, Encoded, Encoder
from sb3_trpo.checkpoint.codecs.inspection import qualified_name
from sb3_trpo.checkpoint.codecs.registry import CODECS

Point = namedtuple("Point", "x y")
HUGE = 10**400
FLOATS = [0.0, -0.0, 1.5, math.inf, -math.inf, math.nan, 5e-324, 2.2250738585072014e-308, 1.7976931348623157e308, 0.1]
INTS = [0, -1, 2**31, 2**63 - 1, -(2**63), 2**63, 2**64, -(2**100), 10**300]
STRINGS = ["", "plain", "a/b", "/", "\0", "\ud800", "\udfff\ud800", "ü", "\U0001f600", '"\\', "live", "nan"]


class Mood(enum.Enum):
    CALM = "calm"
    WILD = "wild"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


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


class Slotted:
    __slots__ = ("a",)


class OwnState:
    def __init__(self, secret=0):
        self.secret = secret

    def get_state(self):
        return {"secret": self.secret}

    def set_state(self, state):
        self.secret = state["secret"]


def generator_of(kind: str, seed: int) -> np.random.Generator:
    return np.random.Generator(getattr(np.random, kind)(seed))


def encode(value: Any, **settings: Any) -> tuple[Encoded, Encoder]:
    """Encode a value; returns JSON and the encoder, which has the arrays."""
    encoder = Encoder(CODECS, **settings)
    return encoder.encode(value, "v"), encoder


def sent(value: Any) -> tuple[Encoded, dict[str, np.ndarray]]:
    """Encode a value, and send it through JSON text and safetensors."""
    encoded, encoder = encode(value)
    assert not encoder.unsupported
    return json.loads(json.dumps(encoded)), safetensors.numpy.load(safetensors.numpy.save(encoder.arrays))


def round_trip(value: Any, live: Any = None) -> Any:
    """Encode a value, and decode it where another one is."""
    encoded, arrays = sent(value)
    return Decoder(CODECS, arrays).decode(encoded, live, "v")


def decode(encoded: Encoded, live: Any = None, **arrays: np.ndarray) -> Any:
    return Decoder(CODECS, arrays).decode(encoded, live, "v")


def object_of(live: Any, **state: Encoded) -> Encoded:
    """Give the encoding of an object of the live one's class."""
    return {"object": qualified_name(type(live)), "state": state}


def bits_of(value: Any) -> tuple[Any, ...]:
    if isinstance(value, th.Tensor):
        return value.dtype, value.shape, value.detach().contiguous().reshape(-1).view(th.uint8).numpy().tobytes()
    return value.dtype, value.shape, np.asarray(value, order="C").tobytes()


def parts_of(value: Any) -> tuple[Any, Any]:
    """Take a value apart into what its equality does not show, and its items."""
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


def is_same(a: Any, b: Any) -> bool:
    """Check whether two values have the same types and bits, all the way down."""
    if type(a) is not type(b):
        return False
    (own, items), (other, others) = parts_of(a), parts_of(b)
    return own == other and len(items) == len(others) and all(map(is_same, items, others))
