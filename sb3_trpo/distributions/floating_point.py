"""
Arithmetic that may underflow or overflow by intent, whatever ``np.seterr`` says.

``np.seterr(all="raise")``, which SB3's guide on NaN advises, is meant for what goes wrong. A product of many discount factors
that falls below the smallest number is 0, as it should be, and a number that is too large for the policy is named by
:func:`~sb3_trpo.rollouts.validation.require_finite`, with the environment and the step that it came from.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeVar

import numpy as np

T = TypeVar("T")
Casting = Literal["same_kind", "unsafe"]
SPURIOUS = (FloatingPointError, RuntimeWarning)
"""
What NumPy raises where it has been told to complain about rounding to 0 or infinity.

Entering ``np.errstate`` takes longer than the arithmetic of one step. So a step computes first, and again by :func:`quietly`
where something was raised.
"""


def quietly(compute: Callable[[], T]) -> T:
    """
    Compute, without complaints about rounding to 0 or infinity.

    :param compute: what to compute
    :return: its result
    """
    with np.errstate(all="ignore"):
        return compute()


def copy_quietly(target: np.ndarray, source: np.ndarray, casting: Casting = "unsafe") -> None:
    """
    Copy numbers, without complaints about rounding to 0 or infinity.

    :param target: what to write into
    :param source: of the same shape
    :param casting: what ``np.copyto`` may do to the type
    """
    try:
        np.copyto(target, source, casting)
    except SPURIOUS:
        quietly(lambda: np.copyto(target, source, casting))


def as_float32(values: np.ndarray) -> np.ndarray:
    """
    Give numbers the type in which policies see them.

    :param values: of any numeric type
    :return: in float32, the same array if it is that already; what is too large is infinite
    """
    if values.dtype == np.float32:
        return values
    with np.errstate(over="ignore", under="ignore"):
        return values.astype(np.float32)
