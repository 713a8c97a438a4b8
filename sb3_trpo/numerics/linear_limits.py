"""
The best step in a ball under linear limits: the small problem inside a constrained trust-region step.

    maximize g^T u   subject to   u^T u / 2 <= delta   and   c_i + b_i^T u <= 0 for every i

This is equation 10 of constrained policy optimization (Achiam et al. 2017, arXiv:1705.10528), in coordinates in which the
metric is the identity. The paper's numbers are ``q = g^T g``, ``r = B g`` and ``S = B B^T`` there.

======  ==============================================================================
u       the step
c_i     value of a limited quantity beyond its limit; negative while the limit is kept
b_i     its gradient, a row of B
W       active set: the limits that hold with equality
nu_i    multiplier of limit i, >= 0, and 0 outside W
lambda  multiplier of the ball
======  ==============================================================================

For a given W the solution has a closed form. With one limit there are two candidates for W, which are the two cases of the
paper's Theorem 2. With several, all subsets are tried: since the problem is convex, the first that satisfies the optimality
conditions is the solution, and it is exact. If no step in the ball keeps all limits, the step goes as far as the ball allows
towards the nearest point that does; for one limit this is the paper's recovery step (equation 14).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from enum import Enum
from itertools import chain, combinations
from typing import NamedTuple

import torch as th

TOLERANCE = 1e-9
"""Relative error in float64 up to which a number counts as 0."""
MOST_LIMITS = 10
"""Largest number of limits: 2^10 active sets take some 50 ms."""


class Limit(NamedTuple):
    """
    An upper bound on a quantity that shapes the step itself, by its gradient.

    :param name: names the limit in records
    :param excess: c, the quantity at the old parameters less its bound; negative while the limit is kept
    :param gradient: b, the quantity's gradient at the old parameters, shape ``(n_parameters,)``
    """

    name: str
    excess: float
    gradient: th.Tensor

    @property
    def is_finite(self) -> bool:
        """Whether a step can be computed from it."""
        return math.isfinite(self.excess) and bool(self.gradient.isfinite().all())

    @property
    def can_be_mended(self) -> bool:
        """Whether it is broken, and to first order something can be done about it."""
        return self.excess > 0.0 and bool(self.gradient.any())


class Region(Enum):
    """What the ball and the limits have in common."""

    FREE = "the limits do not change the step"
    LIMITED = "the step ends on a limit"
    EMPTY = "no step in the ball keeps all limits"


class LimitedStep(NamedTuple):
    """
    The solution.

    :param u: the step, shape ``(k,)``
    :param multipliers: nu, shape ``(m,)``; 0 if the region is empty
    :param region: what the ball and the limits have in common
    """

    u: th.Tensor
    multipliers: th.Tensor
    region: Region


def best_step(g: th.Tensor, rows: th.Tensor, c: th.Tensor, delta: float) -> LimitedStep:
    """
    Solve the problem. Limits without a gradient are left out: no step changes them.

    :param g: gradient of what is maximized, float64, shape ``(k,)``
    :param rows: B, the gradients of the limited quantities, float64, shape ``(m, k)``
    :param c: c, float64, shape ``(m,)``
    :param delta: half the squared radius of the ball, > 0
    :return: the solution
    """
    # In units of the radius, and of each row's length, every number is of order 1 and one tolerance fits all of them.
    radius, lengths, length = (2.0 * delta) ** 0.5, rows.norm(dim=1), float(g.norm())
    known = lengths > 0.0
    lengths = lengths[known]
    unit_g, unit_rows, unit_c = g / (length or 1.0), rows[known] / lengths[:, None], c[known] / (lengths * radius)
    multipliers = th.zeros_like(c)
    found = _solve(unit_g, unit_rows, unit_c)
    if found is None:
        return LimitedStep(radius * recovery(unit_rows, unit_c), multipliers, Region.EMPTY)
    u, nu = found
    multipliers[known] = nu * length / lengths
    is_free = not bool((nu > 0.0).any() or (unit_c > 0.0).any())
    return LimitedStep(radius * u, multipliers, Region.FREE if is_free else Region.LIMITED)


def _solve(g: th.Tensor, rows: th.Tensor, c: th.Tensor) -> tuple[th.Tensor, th.Tensor] | None:
    """Solve the problem in the unit ball for g and rows of length 1; return u and nu, ``None`` if the region is empty."""
    for active in active_sets(len(c)):
        on_limits = _nearest_on(rows[active], c[active])
        if on_limits is None:
            continue
        nearest, inverse = on_limits
        left = 1.0 - float(nearest @ nearest)
        if left < -TOLERANCE:
            continue
        of_g = inverse @ (rows[active] @ g)
        tangent = g - rows[active].T @ of_g
        length = float(tangent.norm())
        is_flat = length <= TOLERANCE**0.5  # g has no part along the limits: every point on them is as good
        reach = 0.0 if is_flat else max(0.0, left) ** 0.5 / length
        u = nearest + reach * tangent
        # Stationarity: g = lambda u + B_W^T nu, where lambda = 1 / reach; the limit reach -> 0 needs no sign of nu beyond c's.
        scaled = reach * of_g + inverse @ c[active] if reach > 0.0 else of_g if is_flat else inverse @ c[active]
        if bool((scaled >= -TOLERANCE).all()) and bool((c + rows @ u <= TOLERANCE).all()):
            nu = th.zeros_like(c)
            nu[active] = (scaled / reach if reach > 0.0 else scaled).clamp(min=0.0)
            return u, nu
    return None


def active_sets(m: int) -> Iterator[list[int]]:
    """
    List the subsets of m limits, the smallest first.

    :param m: number of limits
    :return: indices of each subset
    """
    return (list(each) for each in chain.from_iterable(combinations(range(m), size) for size in range(m + 1)))


def _nearest_on(rows: th.Tensor, c: th.Tensor) -> tuple[th.Tensor, th.Tensor] | None:
    """
    Find the point nearest to 0 at which limits hold with equality, ``-B^T (B B^T)^-1 c``.

    :param rows: B, rows of length 1
    :param c: c
    :return: the point and ``(B B^T)^-1``; ``None`` if the rows depend on each other: then a smaller set has the same solution
    """
    gram = rows @ rows.T
    if len(c) and float(th.linalg.eigvalsh(gram)[0]) <= TOLERANCE:
        return None
    inverse = th.linalg.inv(gram)
    return -rows.T @ (inverse @ c), inverse


def nearest_allowed(rows: th.Tensor, c: th.Tensor) -> th.Tensor | None:
    """
    Find the point nearest to 0 that keeps all limits, however far away.

    :param rows: B, rows of length 1, float64, shape ``(m, k)``
    :param c: c, float64, shape ``(m,)``
    :return: the point, ``None`` if the limits contradict each other
    """
    for active in active_sets(len(c)):
        on_limits = _nearest_on(rows[active], c[active])
        if on_limits is None:
            continue
        nearest, inverse = on_limits
        # Stationarity: u = -B_W^T nu with nu >= 0.
        slack = TOLERANCE * max(1.0, float(nearest.norm()))
        if bool((inverse @ c[active] >= -slack).all()) and bool((c + rows @ nearest <= slack).all()):
            return nearest
    return None


def recovery(rows: th.Tensor, c: th.Tensor) -> th.Tensor:
    """
    Go to the surface of the unit ball, towards the nearest point that keeps all limits.

    Along this way every broken limit comes nearer, and none that is kept is broken: ``c_i + b_i^T u`` is linear, and at most 0
    at the end. If limits contradict each other, go straight towards the one that is farthest away.

    :param rows: B, rows of length 1, float64, shape ``(m, k)``
    :param c: c, float64, shape ``(m,)``, with a positive entry
    :return: the step, of length 1
    """
    target = nearest_allowed(rows, c)
    direction = -rows[c.argmax()] if target is None else target
    return direction.div(direction.norm())
