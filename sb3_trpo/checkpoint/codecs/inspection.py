"""Names of classes, their own methods for state, owners of arrays, and fingerprints."""

from __future__ import annotations

import hashlib
import inspect
import json
import sys
import types
from typing import Any

import numpy as np

OWN_PACKAGE = f"{__name__.partition('.')[0]}."
MOVED = {"sb3_trpo.zoo.memory_tasks": "sb3_trpo.memory_tasks"}
"""Modules whose classes keep the names that they have in checkpoints of 0.1.0, and where those classes were then."""
FUNCTIONS = (types.FunctionType, types.BuiltinFunctionType, types.MethodType, type)


def qualified_name(thing: Any) -> str:
    """
    Return the name under which a class or function is stored in checkpoints and shown to users.

    A class that a subpackage of ours exports has the subpackage's name, as in ``sb3_trpo.recurrent.RecurrentTRPO``: such names
    are in checkpoints, and moving code to another file must not turn a run into another one.

    :param thing: the class or function
    :return: its module and name; classes of some extension modules do not know their module
    """
    module = str(getattr(thing, "__module__", None))
    package = module.rpartition(".")[0]
    is_exported = package.startswith(OWN_PACKAGE) and getattr(sys.modules.get(package), thing.__qualname__, None) is thing
    return f"{package if is_exported else MOVED.get(module, module)}.{thing.__qualname__}"


def has_own_state(value: Any) -> bool:
    """
    Check whether an object's class has the methods ``get_state()`` and ``set_state(state)``.

    The signatures matter: the ``set_state`` of MuJoCo's environments takes positions and velocities.

    :param value: the object
    :return: whether the object takes care of its own state
    """
    cls = type(value)
    try:
        inspect.signature(cls.get_state).bind(value)
        inspect.signature(cls.set_state).bind(value, None)
    except (AttributeError, TypeError, ValueError):
        return False
    return True


def owner_of(array: np.ndarray) -> np.ndarray:
    """
    Find the array that a view is a view of.

    :param array: an array, perhaps a view
    :return: the array at the end of the chain. If that one has a ``base``, its memory belongs to something other than an
        array, such as a simulator
    """
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array


def fingerprint(encoded: Any, arrays: dict[str, np.ndarray]) -> str:
    """
    Compute a digest of an encoded value.

    :param encoded: the JSON value
    :param arrays: the arrays that it refers to, by path
    :return: SHA-256 in hexadecimal digits
    """
    digest = hashlib.sha256(json.dumps(encoded).encode())
    for array in arrays.values():
        digest.update(array.tobytes())
    return digest.hexdigest()
