"""
Hybrid action spaces: a Tuple or Dict of basic spaces, nested or not, as one flat vector of numbers.

The *parts* of a hybrid space are its basic spaces, in Gymnasium's order: that of a Tuple, and that of ``Dict.spaces``, depth
first. Policies and buffers hold an action as the numbers of all parts, one part after another:

=============  ==========================================================
Discrete       one number, the option counted from 0
MultiDiscrete  one number for each choice, each counted from 0
MultiBinary    one number for each bit
Box            one number for each entry, in row-major order
=============  ==========================================================
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces

Path = tuple[Any, ...]
"""Where a part is: the index in each Tuple and the key in each Dict on the way to it."""
BASIC_SPACES = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)
COMPOSITE_SPACES = (spaces.Tuple, spaces.Dict)


class Part(NamedTuple):
    """
    A basic space in a hybrid one.

    :param path: where it is
    :param space: the space, as the environment defines it
    """

    path: Path
    space: spaces.Space[Any]

    @property
    def name(self) -> str:
        """The path as text: ``"1/0"`` is the first part of the second of a Tuple."""
        return joined(self.path)

    @property
    def n_numbers(self) -> int:
        """How many numbers of the flat action are the part's."""
        return int(np.prod(self.space.shape))  # type: ignore[arg-type]  # basic spaces have a shape

    @property
    def flat(self) -> spaces.Space[Any]:
        """The same space with one axis, and with options that count from 0."""
        if isinstance(self.space, spaces.Discrete):
            return spaces.Discrete(int(self.space.n))
        if isinstance(self.space, spaces.MultiDiscrete):
            return spaces.MultiDiscrete(self.space.nvec.ravel().astype(np.int64))
        if isinstance(self.space, spaces.MultiBinary):
            return spaces.MultiBinary(self.n_numbers)
        assert isinstance(self.space, spaces.Box)
        return spaces.Box(self.space.low.ravel(), self.space.high.ravel(), dtype=self.space.dtype.type)

    @property
    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """The smallest and the largest number of the flat action, each of shape ``(n_numbers,)`` and in float32."""
        if isinstance(self.space, spaces.Box):
            with np.errstate(over="ignore"):  # infinite bounds are refused
                return self.space.low.ravel().astype(np.float32), self.space.high.ravel().astype(np.float32)
        low = np.zeros(self.n_numbers, np.float32)
        if isinstance(self.space, spaces.MultiBinary):
            return low, low + 1.0
        n_options = self.space.nvec if isinstance(self.space, spaces.MultiDiscrete) else self.space.n  # type: ignore[attr-defined]
        return low, low + np.ravel(n_options).astype(np.float32) - 1.0

    def encode(self, value: Any) -> np.ndarray:
        """
        Flatten an element of the space.

        :param value: the element
        :return: its numbers, shape ``(n_numbers,)``
        """
        array = np.asarray(value) - np.asarray(getattr(self.space, "start", 0))
        return np.asarray(array, np.float32).reshape(self.n_numbers)

    def decode(self, numbers: np.ndarray) -> np.ndarray:
        """
        Make elements of the space. Numbers beyond the bounds of a Box are clipped, and rounded if it holds integers.

        :param numbers: shape ``(n, n_numbers)``
        :return: the elements, shape ``(n, *space.shape)``, of the type of the space; a new array
        """
        space = self.space
        values = numbers.reshape(len(numbers), *(space.shape or ()))
        if isinstance(space, spaces.Box):
            whole = values if space.dtype.kind == "f" else np.rint(values)
            return np.asarray(np.clip(whole, space.low, space.high).astype(space.dtype))
        return np.asarray(values.astype(space.dtype) + np.asarray(getattr(space, "start", 0), space.dtype))

    def element(self, values: np.ndarray, row: int) -> Any:
        """
        Take one element out of several.

        :param values: a result of :meth:`decode`
        :param row: which one
        :return: a number if the space is Discrete, an array otherwise
        """
        return values[row] if isinstance(self.space, spaces.Discrete) else np.asarray(values[row])


class HybridSpace(spaces.Box):
    """
    The flat form of a Tuple or Dict of actions.

    To SB3's buffers it is a Box with one number for each entry of :attr:`parts`. Its bounds hold for each number by itself;
    not every vector within them is an action, as options are whole numbers.

    :param structure: the environment's space; :func:`check_hybrid` has found no fault
    """

    def __init__(self, structure: spaces.Space[Any]) -> None:
        self.structure = structure
        self.parts = tuple(parts_of(structure))
        """The basic spaces, in the order of their numbers."""
        low, high = (np.concatenate(each) for each in zip(*(part.bounds for part in self.parts), strict=True))
        super().__init__(low, high, dtype=np.float32)

    def __repr__(self) -> str:
        """Name the structure."""
        return f"HybridSpace({self.structure})"

    def __eq__(self, other: object, /) -> bool:
        """Compare the structures: equal vectors may mean different actions in two spaces."""
        return isinstance(other, HybridSpace) and self.structure == other.structure

    __hash__ = None  # type: ignore[assignment]  # as for any Box

    def encode(self, action: Any) -> np.ndarray:
        """
        Flatten an action.

        :param action: as the environment takes it, a tuple or dict
        :return: its numbers, shape ``(n_numbers,)``
        """
        return np.concatenate([part.encode(_found(action, part.path)) for part in self.parts])

    def decode(self, numbers: np.ndarray) -> Any:
        """
        Make actions as the environments take them.

        :param numbers: flat actions, shape ``(n_numbers,)`` for one or ``(n, n_numbers)``
        :return: the action, a tuple or dict; for n of them the list that ``VecEnv.step`` takes
        """
        rows = np.atleast_2d(numbers)
        splits = np.split(rows, np.cumsum([part.n_numbers for part in self.parts])[:-1], axis=1)
        decoded = [(part, part.decode(columns)) for part, columns in zip(self.parts, splits, strict=True)]
        actions = [
            _structured(self.structure, (part.element(values, row) for part, values in decoded)) for row in range(len(rows))
        ]
        return actions if np.ndim(numbers) > 1 else actions[0]

    def indices(self, name: Any) -> list[int]:
        """
        Look up parts by name.

        :param name: of one part, or of a Tuple or Dict that holds several
        :return: positions in :attr:`parts`; empty if nothing has this name
        """
        below = f"{name}/"
        return [index for index, part in enumerate(self.parts) if f"{part.name}/".startswith(below)]


def parts_of(space: spaces.Space[Any], path: Path = ()) -> Iterator[Part]:
    """
    List the basic spaces of a hybrid one.

    :param space: the space
    :param path: where it is
    :return: the parts, in Gymnasium's order
    """
    if not isinstance(space, COMPOSITE_SPACES):
        yield Part(path, space)
        return
    for key, each in _children(space):
        yield from parts_of(each, (*path, key))


def check_hybrid(space: spaces.Space[Any]) -> None:
    """
    Check that a policy can be made for a Tuple or Dict of actions.

    :param space: the environment's action space
    :raises ValueError: if a Tuple or Dict is empty, or a part is of another type, empty or unbounded; names the part
    """
    for path, composite in _composites(space):
        if not [*_children(composite)]:
            raise ValueError(f"The action space {_named(path)}is an empty {type(composite).__name__}, but must have parts.")
    for part in parts_of(space):
        _check_part(part)


def _check_part(part: Part) -> None:
    name, space = _named(part.path), part.space
    if not isinstance(space, BASIC_SPACES):
        hint = "Tuple((Discrete(n), Tuple(...))) with policy_kwargs=dict(action_parameters=...)"
        advice = f"write it as {hint}" if isinstance(space, spaces.OneOf) else "convert it in a wrapper of the environment"
        raise ValueError(
            f"The action space {name}is {space}, but the parts of a Tuple or Dict of actions must be Box, Discrete, "
            f"MultiDiscrete or MultiBinary, or again a Tuple or Dict of these: {advice}."
        )
    if part.n_numbers == 0:
        raise ValueError(f"The action space {name}is {space}, which has no entries, but must have at least one.")
    if isinstance(space, spaces.Box) and not np.isfinite(np.concatenate(part.bounds)).all():
        raise ValueError(
            f"The action space {name}is {space}, but a Box of actions must have finite bounds. Scale actions to [-1, 1] in a "
            "wrapper of the environment, for example."
        )


def joined(path: Path) -> str:
    """
    Write a path as text. A saved model keeps text as it is, but not tuples or the type of a key.

    :param path: where a part is
    :return: its indices and keys, with slashes between them
    """
    return "/".join(map(str, path))


def _named(path: Path) -> str:
    return f"at {joined(path)!r} " if path else ""


def _composites(space: spaces.Space[Any], path: Path = ()) -> Iterator[tuple[Path, spaces.Space[Any]]]:
    """List a space and all that it holds, as far as they are a Tuple or Dict."""
    if isinstance(space, COMPOSITE_SPACES):
        yield path, space
        for key, each in _children(space):
            yield from _composites(each, (*path, key))


def _children(space: spaces.Space[Any]) -> Iterator[tuple[Any, spaces.Space[Any]]]:
    if isinstance(space, spaces.Dict):
        return iter(space.spaces.items())
    assert isinstance(space, spaces.Tuple)
    return enumerate(space.spaces)


def _found(action: Any, path: Path) -> Any:
    for key in path:
        action = action[key]
    return action


def _structured(space: spaces.Space[Any], values: Iterator[Any]) -> Any:
    """Put the values of the parts where they belong."""
    if isinstance(space, spaces.Dict):
        return {key: _structured(each, values) for key, each in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(_structured(each, values) for each in space.spaces)
    return next(values)
