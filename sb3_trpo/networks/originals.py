"""Telling a library's own methods apart from replacements."""

from __future__ import annotations

from collections.abc import Iterable
from types import FunctionType

LIBRARIES = ("torch", "stable_baselines3", "sb3_contrib", "sb3_trpo")
"""Packages whose code is known."""


def are_original(owner: type, names: Iterable[str]) -> bool:
    """
    Check that methods of a class are those with which its author defined it.

    A replacement has the globals of another module, also if it passes for the original by ``functools.wraps``. So it does not
    matter whether a method was replaced before or after this package was imported.

    :param owner: the class; what a user's own class defines is its own affair
    :param names: names of methods
    :return: whether all that it takes from a known library are functions of one
    """
    return all(_is_original(owner, name) for name in names)


def _is_original(owner: type, name: str) -> bool:
    definer = next((each for each in owner.__mro__ if name in vars(each)), None)
    if definer is None:
        return False
    return not _is_of_library(definer.__module__) or _is_known(getattr(owner, name))


def has_original_methods(owner: type) -> bool:
    """
    Check that nothing has been replaced in a class of a known library, or in such classes that it inherits from.

    :param owner: the class; what a user's own class defines is its own affair
    :return: whether all functions in these classes were written in a known library
    """
    known = [each for each in owner.__mro__ if _is_of_library(each.__module__)]
    functions = [value for each in known for value in vars(each).values() if isinstance(value, FunctionType)]
    return all(map(_is_known, functions))


def _is_known(method: object) -> bool:
    return isinstance(method, FunctionType) and _is_of_library(method.__globals__["__name__"])


def _is_of_library(module: str) -> bool:
    return module.partition(".")[0] in LIBRARIES
