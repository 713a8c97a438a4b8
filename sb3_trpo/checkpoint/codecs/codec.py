"""
Codecs, and the encoder and decoder that apply them to values inside values.

An *encoded* value is JSON. ``None``, booleans, integers, strings and finite floats stand for themselves; anything else is a
dict with the name of its kind as the first key, ``{kind: content, ...}``. Arrays are stored beside the JSON, each under the
path of the value it belongs to, as in ``"env/venv/0/env/state"``.

Decoding works on what the user's script has already made, the *live* objects: it fills objects in place and replaces plain
data. It never looks up a class or calls a function by a name from a checkpoint, so a checkpoint from a stranger cannot run
code.
"""

from __future__ import annotations

import copy
import enum
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Container, Iterable, Iterator
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

import numpy as np
from stable_baselines3.common.monitor import ResultsWriter

from sb3_trpo.checkpoint.codecs.file_paths import FilePaths, Handling, leaves_folder, looks_like_path
from sb3_trpo.checkpoint.codecs.inspection import FUNCTIONS, qualified_name

Encoded = Any
"""JSON: ``None``, a bool, an int, a float, a str, or a dict ``{kind: content, ...}``."""
LIVE: Encoded = {"live": None}
"""Stands for a value that is not encoded: the live one stays in place."""
DECODING_ERRORS = (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError, RuntimeError)
"""What malformed JSON or arrays can make a codec raise."""


class MismatchError(ValueError):
    """An encoded value does not fit the live object, or is malformed."""


class Codec(ABC):
    """Encodes and decodes one kind of object. Codecs are sent to worker processes, so they must be picklable."""

    types: ClassVar[tuple[type, ...]] = ()
    """Classes that this codec encodes, with their subclasses."""
    kinds: ClassVar[tuple[str, ...]] = ()
    """Kinds that this codec decodes: the first keys of what it encodes to."""

    def handles(self, cls: type) -> bool:
        """Check whether this codec encodes the objects of a class."""
        return issubclass(cls, self.types)

    @abstractmethod
    def encode(self, value: Any, path: str, encoder: Encoder) -> Encoded:
        """
        Encode an object.

        :param value: the object
        :param path: its place in the run, unique among all values
        :param encoder: encodes the parts of the object, and keeps arrays
        :return: JSON
        """

    def decode(self, encoded: Encoded, live: Any, path: str, decoder: Decoder) -> Any:
        """
        Make an object from its encoding.

        :param encoded: what :meth:`encode` returned, or something hostile
        :param live: what the script has put in this place; ``None`` if nothing
        :param path: the place
        :param decoder: decodes the parts of the object, and has the arrays
        :return: the object that belongs in this place, often the live one
        :raises MismatchError: if the live object cannot take this state
        """
        raise MismatchError(f"{path} is of a kind that is never decoded")


class Codecs:
    """
    An ordered list of codecs.

    :param codecs: the first one that handles an object's class encodes the object
    """

    def __init__(self, codecs: Iterable[Codec]) -> None:
        self._codecs = (*codecs,)
        self._by_kind = {kind: codec for codec in self._codecs for kind in codec.kinds}
        self._by_class: WeakKeyDictionary[type, Codec] = WeakKeyDictionary()

    def __reduce__(self) -> tuple[type[Codecs], tuple[tuple[Codec, ...]]]:
        return Codecs, (self._codecs,)  # the cache of classes cannot be pickled

    def __iter__(self) -> Iterator[Codec]:
        return iter(self._codecs)

    def of_class(self, cls: type) -> Codec:
        """Find the codec for the objects of a class."""
        if cls not in self._by_class:
            self._by_class[cls] = next(codec for codec in self._codecs if codec.handles(cls))
        return self._by_class[cls]

    def of_kind(self, kind: str, path: str) -> Codec:
        """Find the codec for an encoded value of a kind."""
        if kind not in self._by_kind:
            raise MismatchError(f"{path} is of the unknown kind {kind!r}")
        return self._by_kind[kind]


class Encoder:
    """
    Encodes values, whatever they are made of.

    :param codecs: the codecs to use
    :param deep: whether to encode the attributes of objects; a shallow encoder leaves objects to whoever made them
    :param file_paths: knows which attributes are file paths that the script has chosen; by default, all that look like one
    """

    def __init__(self, codecs: Codecs, deep: bool = True, file_paths: FilePaths | None = None) -> None:
        self.codecs = codecs
        self.deep = deep
        self.file_paths = file_paths or FilePaths()
        self.arrays: dict[str, np.ndarray] = {}
        self.unsupported: dict[str, str] = {}
        """Class names of values that cannot be encoded, by path."""
        self._seen: dict[int, tuple[str | None, Any]] = {}

    def empty(self, deep: bool = True, file_paths: FilePaths | None = None) -> Encoder:
        """Return another encoder with the same codecs that has encoded nothing yet."""
        return Encoder(self.codecs, deep, file_paths)

    def encode(self, value: Any, path: str) -> Encoded:
        """
        Encode a value.

        :param value: anything
        :param path: its place in the run, unique among all values
        :return: JSON
        """
        return self.codecs.of_class(value.__class__).encode(value, path, self)

    def encode_all(self, values: Iterable[Any], path: str) -> list[Encoded]:
        """Encode several values, numbered under one path."""
        return [self.encode(value, f"{path}/{index}") for index, value in enumerate(values)]

    def once(self, value: Any, path: str, encode: Callable[[], Encoded]) -> Encoded:
        """
        Encode a mutable object, or refer to the path where it was encoded before, so that shared objects stay shared.

        :param value: the object
        :param path: its path
        :param encode: called if the object has not been met before
        :return: JSON
        """
        if id(value) in self._seen:
            first, _ = self._seen[id(value)]
            return LIVE if first is None else {"same": first}
        self._seen[id(value)] = (path, value)  # with the object, or another one might get its id
        encoded = encode()
        if encoded == LIVE:
            self._seen[id(value)] = (None, value)
        return encoded

    def reject(self, value: Any, path: str) -> Encoded:
        """Record that a value cannot be encoded, and leave it to the script."""
        self.unsupported[path] = qualified_name(type(value))
        return LIVE

    def merge(self, arrays: dict[str, np.ndarray], unsupported: dict[str, str], prefix: str = "") -> None:
        """Take over arrays and unsupported values from another encoder, with a prefix before their paths."""
        self.arrays |= {prefix + path: array for path, array in arrays.items()}
        self.unsupported |= {prefix + path: name for path, name in unsupported.items()}

    def save_progress(self) -> tuple[dict[str, np.ndarray], dict[int, tuple[str | None, Any]]]:
        """Remember what has been encoded so far, for :meth:`roll_back`."""
        return dict(self.arrays), dict(self._seen)

    def roll_back(self, progress: tuple[dict[str, np.ndarray], dict[int, tuple[str | None, Any]]]) -> None:
        """Forget what has been encoded since :meth:`save_progress`, but not what turned out to be unsupported."""
        self.arrays, self._seen = progress

    def encode_attributes(self, owner: Any, path: str, skip: Container[str] = ()) -> dict[str, Encoded]:
        """Encode an object's attributes by name, except those that stay live or are file paths of the script."""
        kept = {name: value for name, value in vars(owner).items() if name not in skip}
        encoded = {name: self.encode_attribute(name, value, f"{path}/{name}") for name, value in kept.items()}
        return {name: each for name, each in encoded.items() if each != LIVE}

    def encode_attribute(self, name: str, value: Any, path: str) -> Encoded:
        """Encode one attribute of an object, which may be a file path; ``path`` is the attribute's."""
        handling = self.file_paths.classify(path, name, value)
        encoded = LIVE if handling is Handling.LEAVE else self.encode(value, path)
        return {"changed": encoded} if handling is Handling.ENCODE_CHANGED and encoded != LIVE else encoded


class Decoder:
    """
    Decodes values, each with the live object in its place as a pattern.

    :param codecs: the codecs to use
    :param arrays: arrays by path
    """

    def __init__(self, codecs: Codecs, arrays: dict[str, np.ndarray]) -> None:
        self.codecs = codecs
        self.arrays = arrays
        self.decoded: dict[str, Any] = {}
        """Values by path; a codec puts its object here before the parts are decoded if these may refer to it."""
        self.failures: list[str] = []
        """What could not be restored in environments; the run can continue without it."""
        self._filled: dict[int, Any] = {}

    def decode(self, encoded: Encoded, live: Any, path: str) -> Any:
        """
        Decode a value.

        :param encoded: JSON
        :param live: what is in this place now
        :param path: the place
        :return: what belongs in this place
        :raises MismatchError: if the live object cannot become that
        """
        if not isinstance(encoded, dict):
            return encoded
        try:
            self.decoded[path] = self._decode_kind(next(iter(encoded), ""), encoded, live, path)
        except MismatchError:
            raise
        except DECODING_ERRORS as error:
            raise MismatchError(f"{path} cannot be restored: {error}") from error
        return self.decoded[path]

    def _decode_kind(self, kind: str, encoded: dict[str, Encoded], live: Any, path: str) -> Any:
        if kind == "same":
            return self.decoded[encoded["same"]]
        if kind == "changed":
            return self.decode(encoded["changed"], live, path)
        return self.codecs.of_kind(kind, path).decode(encoded, live, path, self)

    def decode_all(self, encoded: list[Encoded], live: Any, path: str) -> list[Any]:
        """Decode several values; there may be fewer live ones, or none."""
        there = [*live] if isinstance(live, (list, tuple, deque, set, frozenset)) else []
        pattern = there[0] if there and isinstance(there[0], enum.Enum) else None  # of enums, the class is all that is needed
        there += [pattern] * (len(encoded) - len(there))
        return [self.decode(each, there[index], f"{path}/{index}") for index, each in enumerate(encoded)]

    def to_fill(self, live: Any) -> Any:
        """
        Return an object to fill: the live one, or a copy if the live one has been filled for another place.

        Two places that share an object in the script need not have shared it in the run.
        """
        mine = copy.copy(live) if self.is_filled(live) else live
        self.mark_filled(mine)
        return mine

    def is_filled(self, live: Any) -> bool:
        """Check whether a live object has been filled already."""
        return id(live) in self._filled

    def mark_filled(self, live: Any) -> None:
        """Note that a live object has been filled."""
        self._filled[id(live)] = live  # with the object, or another one might get its id

    def decode_attributes(self, owner: Any, encoded: dict[str, Encoded], path: str, skip: Container[str] = ()) -> None:
        """
        Set an object's attributes.

        :param owner: the object
        :param encoded: JSON by name
        :param path: the object's path
        :param skip: names of attributes to leave alone
        :raises MismatchError: if a value does not fit, or would take the place of a method: nothing in a checkpoint
            may change what code runs
        """
        there = vars(owner)
        for name, each in encoded.items():
            live = there.get(name)
            starts_logging = each is None and isinstance(live, ResultsWriter)  # the script has given Monitor a file
            if name in skip or starts_logging or _belongs_to_script(name, each, live):
                continue
            hides_method = callable(getattr(type(owner), name, None)) or isinstance(live, FUNCTIONS)
            stays_function = isinstance(live, FUNCTIONS) and isinstance(each, dict) and "function" in each
            if not name.isidentifier() or name.startswith("__") or (hides_method and not stays_function):
                raise MismatchError(f"{path}/{name} would hide a method of {qualified_name(type(owner))}")
            value = self.decode(each, live, f"{path}/{name}")
            if not (_has_changed(each) and leaves_folder(value)):
                there[name] = value


def _belongs_to_script(name: str, encoded: Encoded, live: Any) -> bool:
    """Check whether an attribute is a file path to leave alone; one that the run has changed is not."""
    return not _has_changed(encoded) and (looks_like_path(name, encoded) or looks_like_path(name, live))


def _has_changed(encoded: Encoded) -> bool:
    return isinstance(encoded, dict) and "changed" in encoded
