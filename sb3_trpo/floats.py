"""
Arithmetic that may underflow or overflow by intent, whatever NumPy has been told to do about it.

``np.seterr(all="raise")``, which SB3's guide on NaN advises, is meant for what goes wrong. A product of many discount factors
that falls below the smallest number is 0, as it should be, and a number that is too large for the policy is named by
:func:`~sb3_trpo.rollout.require_finite`, with the environment and the step that it came from.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import numpy as np

T = TypeVar("T")


def quietly(compute: Callable[[], T]) -> T:
    """
    Compute, without complaints about rounding to 0 or infinity.

    Entering ``np.errstate`` takes longer than the arithmetic of one step, so that it is done only where something was raised.

    :param compute: may be run twice, the second time over what the first one has left
    :return: its result
    """
    try:
        return compute()
    except (FloatingPointError, RuntimeWarning):
        with np.errstate(all="ignore"):
            return compute()


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
