"""Python's own containers."""

from __future__ import annotations

import copy
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Iterable
from typing import Any, ClassVar

import numpy as np

from sb3_trpo.checkpoint.codecs.arrays import store
from sb3_trpo.checkpoint.codecs.codec import LIVE, Codec, Decoder, Encoded, Encoder, MismatchError

SHORTEST_PACKED = 8
"""From this length on, numbers of one type are stored as an array: long lists of results would fill the JSON."""


def _encode_items(values: Any, path: str, encoder: Encoder) -> Encoded:
    """Encode items: the path of an array if they are many numbers of one type, or else a list."""
    for number, dtype in ((float, np.float64), (int, np.int64)):
        if len(values) >= SHORTEST_PACKED and all(type(each) is number for each in values):
            try:
                return store(np.array([*values], dtype), path, encoder)
            except OverflowError:  # integers of more than 64 bits
                break
    return encoder.encode_all(values, path)


def _decode_items(content: Encoded, live: Any, path: str, decoder: Decoder) -> list[Any]:
    if isinstance(content, str):
        packed: list[Any] = decoder.arrays[content].tolist()
        return packed
    return decoder.decode_all(content, live, path)


def _encode_container(encoded: dict[str, Encoded], items: Iterable[Encoded], encoder: Encoder) -> Encoded:
    """
    Leave a container alone if everything in it stays live.

    A shallow encoder leaves it alone if anything in it does: half of the container would be the script's.
    """
    stay_live = [item == LIVE for item in items]
    is_left = stay_live and (all(stay_live) or (any(stay_live) and not encoder.deep))
    return LIVE if is_left else encoded


class SequenceCodec(Codec):
    """Lists, tuples, named tuples, sets, frozen sets and deques."""

    types = (list, tuple, set, frozenset, deque)
    kinds = ("list", "tuple", "set", "frozenset", "deque")
    makers: ClassVar[dict[str, type]] = {"tuple": tuple, "set": set, "frozenset": frozenset}

    def encode(self, value: Any, path: str, encoder: Encoder) -> Encoded:
        """Encode the items; subclasses other than named tuples may have more than items."""
        base = next(each for each in self.types if isinstance(value, each))
        if type(value) is not base and not hasattr(value, "_fields"):
            return encoder.reject(value, path)
        more: dict[str, Any] = {"maxlen": value.maxlen} if isinstance(value, deque) else {}
        if type(value) is not base:
            more["fields"] = [*value._fields]

        def encode_new() -> Encoded:
            items = _encode_items(value, path, encoder)
            children = items if isinstance(items, list) else ()
            return _encode_container({base.__name__: items, **more}, children, encoder)

        return encoder.once(value, path, encode_new)

    def decode(self, encoded: Encoded, live: Any, path: str, decoder: Decoder) -> Any:
        """Make a new container; a named tuple is of the live one's class."""
        kind = next(iter(encoded))
        if kind == "list":
            made: list[Any] = []
            decoder.decoded[path] = made  # it may contain itself
            made += _decode_items(encoded["list"], live, path, decoder)
            return made
        items = _decode_items(encoded[kind], live, path, decoder)
        if kind == "deque":
            return deque(items, encoded["maxlen"])
        if kind == "tuple" and "fields" in encoded:
            if getattr(live, "_fields", None) != (*encoded["fields"],):
                raise MismatchError(f"{path} was a tuple with the fields {encoded['fields']}, which is not there now")
            return type(live)(*items)
        return self.makers[kind](items)


class DictCodec(Codec):
    """Dicts, and the variants of them in ``collections``."""

    types = (dict,)
    kinds = ("dict",)

    def encode(self, value: dict[Any, Any], path: str, encoder: Encoder) -> Encoded:
        """Encode pairs of key and value: keys need not be strings."""
        if type(value) not in (dict, OrderedDict, defaultdict, Counter):
            return encoder.reject(value, path)

        def encode_new() -> Encoded:
            keys, values = encoder.encode_all(value, f"{path}/key"), encoder.encode_all(value.values(), path)
            return _encode_container({"dict": [[*pair] for pair in zip(keys, values, strict=True)]}, values, encoder)

        return encoder.once(value, path, encode_new)

    def decode(self, encoded: Encoded, live: Any, path: str, decoder: Decoder) -> dict[Any, Any]:
        """Make a dict of the live one's class."""
        made = copy.copy(live) if isinstance(live, dict) else {}  # a copy: a defaultdict keeps its factory
        there = dict(made)
        made.clear()
        keys = [*there]
        # Keys that are classes or enumerations need a live pattern, and there may be fewer live keys than encoded ones.
        for index, (key, value) in enumerate(encoded["dict"]):
            name = decoder.decode(key, keys[index % len(keys)] if keys else None, f"{path}/key/{index}")
            made[name] = decoder.decode(value, there.get(name), f"{path}/{index}")
        return made
