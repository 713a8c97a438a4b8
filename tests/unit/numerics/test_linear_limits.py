"""The small problem inside a step under limits, against SLSQP, the paper's formula and the optimality conditions."""

import numpy as np
import pytest
import torch as th
from hypothesis import given, settings, strategies as st
from scipy.optimize import minimize

from sb3_trpo.numerics.linear_limits import Region, active_sets, best_step, nearest_allowed, recovery


def problem(seed, m=None):
    """Draw g, B, c and delta: free, limited and empty regions are all common."""
    rng = np.random.default_rng(seed)
    k, m = rng.integers(1, 6), m or rng.integers(1, 5)
    delta = 10.0 ** rng.uniform(-4, 1)
    c = rng.normal(size=m) * np.sqrt(2 * delta) * rng.choice([0.1, 0.5, 2.0])
    return rng.normal(size=k), rng.normal(size=(m, k)) * 10.0 ** rng.uniform(-3, 3), c, delta


def solve(g, rows, c, delta):
    # The rows' lengths are arbitrary, so c is given for rows of length 1.
    c = c * np.linalg.norm(rows, axis=1)
    return best_step(*map(th.tensor, (g, rows, c)), delta), c


def by_slsqp(g, rows, c, delta):
    """Solve in units of the radius and of the rows' lengths; return the largest ``g^T u``, ``None`` if nothing is allowed."""
    radius, lengths = np.sqrt(2 * delta), np.linalg.norm(rows, axis=1)
    rows, c = rows / lengths[:, None], c / lengths / radius
    ball = {"type": "ineq", "fun": lambda u: 1 - u @ u, "jac": lambda u: -2 * u}
    limits = {"type": "ineq", "fun": lambda u: -(c + rows @ u), "jac": lambda u: -rows}
    inside = minimize(lambda u: u @ u, np.zeros(len(g)), jac=lambda u: 2 * u, constraints=[limits], method="SLSQP").x
    if max(c + rows @ inside) > 1e-6 or inside @ inside > 1 + 1e-6:
        return None
    constraints = [ball, limits]
    found = minimize(lambda u: -g @ u, inside, jac=lambda u: -g, constraints=constraints, method="SLSQP", tol=1e-12)
    return radius * g @ found.x


@settings(max_examples=100)
@given(st.integers(0, 2**32))
def test_the_step_is_that_of_a_general_solver(seed):
    g, rows, c, delta = problem(seed)
    step, c = solve(g, rows, c, delta)
    u, expected = step.u.numpy(), by_slsqp(g, rows, c, delta)
    assert u @ u / 2 <= delta * (1 + 1e-8)
    if step.region is Region.EMPTY:
        assert expected is None or u @ u / 2 == pytest.approx(delta)
    else:
        assert expected is not None
        assert max((c + rows @ u) / np.linalg.norm(rows, axis=1)) <= 1e-7 * np.sqrt(2 * delta)
        assert g @ u == pytest.approx(expected, rel=1e-4, abs=1e-4 * np.sqrt(2 * delta) * np.linalg.norm(g))


@settings(max_examples=100)
@given(st.integers(0, 2**32))
def test_multipliers_satisfy_the_optimality_conditions(seed):
    g, rows, c, delta = problem(seed)
    step, c = solve(g, rows, c, delta)
    if step.region is Region.EMPTY:
        assert not step.multipliers.any()
        return
    u, nu = step.u.numpy(), step.multipliers.numpy()
    assert (nu >= 0.0).all()
    slack = (c + rows @ u) / np.linalg.norm(rows, axis=1) / np.sqrt(2 * delta)
    assert (np.abs(slack)[nu > 0.0] <= 1e-7).all()
    # What is left of g after the limits' share points along u, or is 0 if the ball does not hold the step.
    rest = g - rows.T @ nu
    along = rest @ u / (np.linalg.norm(u) or 1.0)
    assert along >= -1e-7 * np.linalg.norm(g)
    if u @ u / 2 >= delta * (1 - 1e-9):
        assert np.linalg.norm(rest - along * u / np.linalg.norm(u)) <= 1e-6 * np.linalg.norm(g)


@settings(max_examples=100)
@given(st.integers(0, 2**32))
def test_one_limit_gives_the_formula_of_the_paper(seed):
    """Achiam et al. 2017, Theorem 2: the solution is ``H^-1 (g - nu b) / lambda``, with the numbers of its proof."""
    g, rows, c, delta = problem(seed, m=1)
    step, c = solve(g, rows, c, delta)
    (b,), (c,) = rows, c
    q, r, s = g @ g, g @ b, b @ b
    if step.region is Region.EMPTY:
        assert c > 0.0
        assert c**2 / s > 2 * delta
        np.testing.assert_allclose(step.u, -np.sqrt(2 * delta / s) * b)  # equation 14
    elif c + np.sqrt(2 * delta / q) * r <= 0.0:
        np.testing.assert_allclose(step.u, np.sqrt(2 * delta / q) * g)
    elif len(g) > 1:
        lam = np.sqrt((q - r**2 / s) / (2 * delta - c**2 / s))
        nu = (r + lam * c) / s
        np.testing.assert_allclose(step.u, (g - nu * b) / lam, rtol=1e-6, atol=1e-6 * np.sqrt(2 * delta))
        assert step.multipliers.item() == pytest.approx(nu, rel=1e-6)


@settings(max_examples=50)
@given(st.integers(0, 2**32))
def test_out_of_reach_every_broken_limit_comes_nearer_and_no_other_breaks(seed):
    rng = np.random.default_rng(seed)
    rows = th.tensor(rng.normal(size=(3, 4)))
    rows /= rows.norm(dim=1, keepdim=True)
    c = th.tensor(rng.normal(size=3) + 2.0)
    target = nearest_allowed(rows, c)
    assert target is not None
    if target.norm() < 1.0:
        return
    step = recovery(rows, c)
    assert step.norm().item() == pytest.approx(1.0)
    assert (rows @ step)[c > 0.0].max() < 0.0
    assert (c + rows @ step)[c <= 0.0].max() <= 1e-9 if (c <= 0.0).any() else True


def test_contradicting_limits_go_towards_the_farthest():
    rows, c = th.tensor([[1.0, 0.0], [-1.0, 0.0]]).double(), th.tensor([0.2, 0.5]).double()
    assert nearest_allowed(rows, c) is None
    assert best_step(th.ones(2).double(), rows, c, 2.0).region is Region.EMPTY
    assert best_step(th.ones(2).double(), rows, c, 2.0).u.tolist() == [2.0, 0.0]


def test_a_limit_without_gradient_is_left_out():
    g, rows = th.tensor([3.0, 4.0]).double(), th.zeros(1, 2).double()
    step = best_step(g, rows, th.ones(1).double(), 2.0)
    assert (step.region, step.multipliers.tolist()) == (Region.FREE, [0.0])
    assert step.u.tolist() == pytest.approx([1.2, 1.6])


def test_equal_limits_act_as_one():
    g, b = th.tensor([1.0, 1.0]).double(), th.tensor([[1.0, 0.0]]).double()
    one = best_step(g, b, th.tensor([-0.1]).double(), 0.5)
    two = best_step(g, b.repeat(2, 1), th.tensor([-0.1, -0.1]).double(), 0.5)
    th.testing.assert_close(one.u, two.u)


def test_a_gradient_along_the_limits_own_stops_at_the_limit():
    step = best_step(th.tensor([2.0]).double(), th.tensor([[4.0]]).double(), th.tensor([-1.0]).double(), 0.5)
    assert step.u.tolist() == pytest.approx([0.25])
    assert step.multipliers.tolist() == pytest.approx([0.5])


def test_without_a_gradient_a_broken_limit_is_just_reached():
    step = best_step(th.zeros(2).double(), th.tensor([[0.0, 2.0]]).double(), th.tensor([1.0]).double(), 0.5)
    assert (step.region, step.u.tolist()) == (Region.LIMITED, [0.0, -0.5])


def test_all_subsets_are_tried_once():
    assert [*active_sets(2)] == [[], [0], [1], [0, 1]]
    assert len({tuple(each) for each in active_sets(5)}) == 32
