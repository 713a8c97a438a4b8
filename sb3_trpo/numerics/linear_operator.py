"""Linear operators, known by their products alone."""

from __future__ import annotations

from collections.abc import Callable

import torch as th

Operator = Callable[[th.Tensor], th.Tensor]


def damped(operator: Operator, damping: float) -> Operator:
    """
    Make ``v -> (A + damping I) v``.

    :param operator: ``v -> A v``
    :param damping: lambda, what is added to every eigenvalue
    :return: the damped operator
    """
    return lambda v: operator(v).add(v, alpha=damping)
