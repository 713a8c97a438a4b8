"""
Arithmetic that may underflow or overflow, whatever the user has set with ``np.seterr``.

SB3's guide on NaN recommends ``np.seterr(all="raise")`` to catch mistakes. Here it would raise in harmless cases. A product
of many discount factors that underflows is 0, as it should be. A number that is too large for the policy is reported by
:func:`~sb3_trpo.rollouts.validation.require_finite`, with the environment and the step that it came from.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeVar

import numpy as np

T = TypeVar("T")
Casting = Literal["same_kind", "unsafe"]
HARMLESS = (FloatingPointError, RuntimeWarning)
"""What NumPy raises on underflow or overflow if the user turned them, or all warnings, into errors."""


def quietly(compute: Callable[[], T]) -> T:
    """
    Compute something without complaints about underflow or overflow.

    :param compute: the computation
    :return: its result
    """
    with np.errstate(all="ignore"):
        return compute()


def quietly_if_needed(compute: Callable[[], T]) -> T:
    """
    Compute something, and if NumPy complains repeat it by :func:`quietly`.

    Entering ``np.errstate`` at each step would take longer than the arithmetic itself, and hardly anyone needs it.

    :param compute: the computation, which must not change what it reads: it may run twice
    :return: its result
    """
    try:
        return compute()
    except HARMLESS:
        return quietly(compute)


def copy_quietly(target: np.ndarray, source: np.ndarray, casting: Casting = "unsafe") -> None:
    """
    Copy numbers without complaints about underflow or overflow.

    :param target: array to write to
    :param source: array of the same shape
    :param casting: which changes of type are allowed, as in ``np.copyto``
    """
    try:
        np.copyto(target, source, casting)
    except HARMLESS:
        quietly(lambda: np.copyto(target, source, casting))


def as_float32(values: np.ndarray) -> np.ndarray:
    """
    Convert numbers to the type in which policies see them.

    :param values: array of any numeric type
    :return: the numbers in float32, infinite if they are too large; the same array if its type is float32 already
    """
    if values.dtype == np.float32:
        return values
    with np.errstate(over="ignore", under="ignore"):
        return values.astype(np.float32)
