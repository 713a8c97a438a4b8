"""Telling methods of the libraries that this package builds on from what somebody has put in their place."""

from __future__ import annotations

from collections.abc import Iterable
from types import FunctionType

LIBRARIES = ("torch", "stable_baselines3", "sb3_contrib", "sb3_trpo")
"""Packages whose code is known."""


def are_original(owner: type, names: Iterable[str]) -> bool:
    """
    Check that methods of a class were written in a known library.

    A replacement has the globals of another module, also if it passes for the original by ``functools.wraps``. So it does not
    matter whether a method was replaced before or after this package was imported.

    :param owner: the class
    :param names: names of methods
    :return: whether all of them are functions of a known library
    """
    return all(_is_known(getattr(owner, name, None)) for name in names)


def has_original_methods(owner: type) -> bool:
    """
    Check that all methods of a class were written in a known library.

    :param owner: the class
    :return: whether all functions in it and in the classes that it inherits from are
    """
    inherited = (vars(each).items() for each in owner.__mro__)
    return all(_is_known(value) for items in inherited for _, value in items if isinstance(value, FunctionType))


def _is_known(method: object) -> bool:
    return isinstance(method, FunctionType) and method.__globals__["__name__"].partition(".")[0] in LIBRARIES
