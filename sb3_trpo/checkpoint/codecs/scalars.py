"""Plain values: numbers, strings, bytes, members of enumerations, and immutable values that a string describes in full."""

from __future__ import annotations

import enum
import math
from collections.abc import Callable
from datetime import date, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any, ClassVar, NamedTuple

import numpy as np

from sb3_trpo.checkpoint.codecs.arrays import store
from sb3_trpo.checkpoint.codecs.codec import Codec, Decoder, Encoded, Encoder, MismatchError

LONGEST_INT = 2**13
"""Bits; Python refuses to read much longer integers from text."""


class JsonCodec(Codec):
    """The values that JSON has, except numbers."""

    types = (type(None), bool, str)

    def encode(self, value: bool | str | None, path: str, encoder: Encoder) -> Encoded:
        """Return the value as it is."""
        return value


class IntCodec(Codec):
    """Integers."""

    types = (int,)

    def encode(self, value: int, path: str, encoder: Encoder) -> Encoded:
        """Return an integer as it is, unless Python would refuse to read it back."""
        return value if value.bit_length() <= LONGEST_INT else encoder.reject(value, path)


class FloatCodec(Codec):
    """Floats; JSON has no infinities and NaN."""

    types = (float,)
    kinds = ("float",)

    def encode(self, value: float, path: str, encoder: Encoder) -> Encoded:
        """Return a finite float as it is; Python's JSON keeps every bit."""
        return value if math.isfinite(value) else {"float": repr(value)}

    def decode(self, encoded: Encoded, live: Any, path: str, decoder: Decoder) -> float:
        """Read a float from its text."""
        return float(encoded["float"])


class BytesCodec(Codec):
    """Bytes and byte arrays."""

    types = (bytes, bytearray)
    kinds = ("bytes", "bytearray")

    def encode(self, value: bytes | bytearray, path: str, encoder: Encoder) -> Encoded:
        """Encode bytes as an array."""
        data = np.frombuffer(bytes(value), np.uint8)  # a copy: nobody can resize a bytearray while an array shows it
        return encoder.once(value, path, lambda: {type(value).__name__: store(data, path, encoder)})

    def decode(self, encoded: Encoded, live: Any, path: str, decoder: Decoder) -> bytes | bytearray:
        """Make bytes of an array."""
        ((kind, array_path),) = encoded.items()
        data = decoder.arrays[array_path].tobytes()
        return bytearray(data) if kind == "bytearray" else data


class FlagCodec(Codec):
    """Flags, by their value: a combination has no name."""

    types = (enum.Flag,)
    kinds = ("flag",)

    def encode(self, value: enum.Flag, path: str, encoder: Encoder) -> Encoded:
        """Encode the number."""
        return {"flag": value.value}

    def decode(self, encoded: Encoded, live: Any, path: str, decoder: Decoder) -> enum.Flag:
        """Make a flag of the live one's class."""
        if not isinstance(live, enum.Flag):
            raise MismatchError(f"{path} was a flag, but is {live!r}")
        return type(live)(encoded["flag"])


class EnumCodec(Codec):
    """Members of other enumerations, by name."""

    types = (enum.Enum,)
    kinds = ("enum",)

    def encode(self, value: enum.Enum, path: str, encoder: Encoder) -> Encoded:
        """Encode the name."""
        return {"enum": value.name}

    def decode(self, encoded: Encoded, live: Any, path: str, decoder: Decoder) -> enum.Enum:
        """Look up the name in the live member's class."""
        if not isinstance(live, enum.Enum):
            raise MismatchError(f"{path} was {encoded['enum']} of an enumeration, but is {live!r}")
        return type(live)[encoded["enum"]]


class _Text(NamedTuple):
    """A type of values, with functions that write and read them as text."""

    type: Any
    write: Callable[[Any], str]
    read: Callable[[str], Any]


def _read_range(text: str) -> range:
    return range(*map(int, text.split()))


def _read_timedelta(text: str) -> timedelta:
    days, seconds, microseconds = map(int, text.split())
    return timedelta(days, seconds, microseconds)


class TextCodec(Codec):
    """Immutable values that a string describes in full."""

    texts: ClassVar[dict[str, _Text]] = {
        "complex": _Text(complex, repr, complex),
        "Decimal": _Text(Decimal, str, Decimal),
        "Fraction": _Text(Fraction, str, Fraction),
        "datetime": _Text(datetime, datetime.isoformat, datetime.fromisoformat),
        "date": _Text(date, date.isoformat, date.fromisoformat),
        "timedelta": _Text(timedelta, lambda each: f"{each.days} {each.seconds} {each.microseconds}", _read_timedelta),
        "range": _Text(range, lambda each: f"{each.start} {each.stop} {each.step}", _read_range),
    }
    types = tuple(text.type for text in texts.values())
    kinds = tuple(texts)

    def encode(self, value: Any, path: str, encoder: Encoder) -> Encoded:
        """Write the text; a subclass may hold more than the text shows."""
        text = self.texts.get(type(value).__name__)
        is_known = text is not None and text.type is type(value)
        return {type(value).__name__: text.write(value)} if text and is_known else encoder.reject(value, path)

    def decode(self, encoded: Encoded, live: Any, path: str, decoder: Decoder) -> Any:
        """Read the text."""
        ((kind, text),) = encoded.items()
        return self.texts[kind].read(text)
