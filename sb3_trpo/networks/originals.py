"""Telling the methods of a library's class from what somebody has put in their place."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from types import FunctionType


def are_original(owner: type, names: Iterable[str]) -> bool:
    """
    Check that a class has the methods with which its module, or that of the class it inherits them from, defines it.

    A function of another module has other globals, also if it passes for the original by ``functools.wraps``. So it does not
    matter whether a method was replaced before or after this package was imported.

    :param owner: the class
    :param names: names of methods
    :return: whether all of them are the modules' own
    """
    return all(_is_own(owner, name) for name in names)


def _is_own(owner: type, name: str) -> bool:
    definer = next((each for each in owner.__mro__ if name in vars(each)), object)
    method = vars(definer).get(name)
    return isinstance(method, FunctionType) and method.__globals__ is vars(sys.modules[definer.__module__])
