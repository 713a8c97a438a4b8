"""A trust-region step under limits, on quadratic problems whose matrices are known."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch as th
from helpers.quadratic import Quadratic
from hypothesis import given, settings, strategies as st
from scipy.optimize import minimize

from sb3_trpo.numerics.conjugate_gradient import ConjugateGradient
from sb3_trpo.numerics.limited_step import limited_step, orthonormal_basis, total_excess
from sb3_trpo.numerics.line_search import BacktrackingLineSearch, Candidate
from sb3_trpo.numerics.linear_limits import Limit
from sb3_trpo.numerics.linear_operator import Solution, Termination
from sb3_trpo.numerics.trust_region import Outcome, trust_region_step

DELTA = 0.01


@dataclass(kw_only=True)
class Limited(Quadratic):
    """A quadratic problem with limits on ``b_i.d + bend * d.d`` of the displacement d."""

    rows: th.Tensor
    excesses: th.Tensor
    bend: float = 0.0

    def evaluate(self) -> Candidate:
        measured = super().evaluate()
        d = self.visited[-1]
        return measured._replace(values=(*measured.values, *(self.rows @ d + self.bend * d @ d).tolist()))

    def limited(self, delta=DELTA):
        named = zip(self.excesses.tolist(), self.rows, strict=True)
        return self.model(delta * (1 + 1e-9), limits=[Limit(f"limit {i}", excess, b) for i, (excess, b) in enumerate(named)])

    def step(self, damping=0.0, cg_max_steps=50, delta=DELTA, attempt=limited_step):
        solver, search = ConjugateGradient(cg_max_steps, 1e-14), BacktrackingLineSearch(0.5, 6)
        return trust_region_step(self.limited(delta), solver, search, damping, attempt)


def problem_in_space(g, rows, excesses):
    """Make a problem of three parameters, with the identity as its Fisher matrix."""
    given = (th.tensor(each, dtype=th.float64) for each in (g, rows, excesses))
    return Limited(**dict(zip(("g", "rows", "excesses"), given, strict=True)), fisher=th.eye(3, dtype=th.float64))


def random_problem(seed, m=2, n=5, scale=1.0, **more):
    generator = th.Generator().manual_seed(seed)
    root, g, rows, excesses = (
        th.randn(shape, generator=generator, dtype=th.float64) for shape in ((n, n), (n,), (m, n), (m,))
    )
    fisher = root @ root.T + 0.3 * th.eye(n, dtype=th.float64)
    # What a limit can change by inside the trust region is the unit of its excess.
    reach = (2.0 * DELTA * (rows @ th.linalg.solve(fisher, rows.T)).diagonal()).sqrt()
    return Limited(fisher=fisher, g=g, rows=rows, excesses=scale * reach * excesses, **more)


def best(problem):
    """Solve by SLSQP from the dense matrices, in units of the radius; ``None`` if no step in the region keeps the limits."""
    h, g, rows, c = (each.numpy() for each in (problem.fisher, problem.g, problem.rows, problem.excesses))
    root = np.linalg.cholesky(h) / np.sqrt(2 * DELTA)
    g, rows = np.linalg.solve(root, g), np.linalg.solve(root, rows.T).T
    limits = {"type": "ineq", "fun": lambda u: -(c + rows @ u), "jac": lambda u: -rows}
    ball = {"type": "ineq", "fun": lambda u: 1 - u @ u, "jac": lambda u: -2 * u}
    inside = minimize(lambda u: u @ u, np.zeros(len(g)), jac=lambda u: 2 * u, constraints=[limits], method="SLSQP").x
    if max(c + rows @ inside) > 1e-7 or inside @ inside > 1.0:
        return None
    u = minimize(lambda u: -g @ u, inside, jac=lambda u: -g, constraints=[ball, limits], method="SLSQP", tol=1e-14).x
    return float(g @ u)


@settings(max_examples=40)
@given(st.integers(0, 2**32), st.integers(1, 3), st.sampled_from([0.3, 1.0]))
def test_the_full_step_is_the_optimum(seed, m, scale):
    problem = random_problem(seed, m, scale=scale)
    outcome, expected = problem.step().outcome, best(problem)
    full = problem.visited[0]
    assert 0.5 * full @ problem.fisher @ full <= DELTA * (1 + 1e-7)
    if expected is None:
        assert outcome is Outcome.RECOVERED
        return
    assert outcome in (Outcome.ACCEPTED, Outcome.LIMITED)
    assert (problem.excesses + problem.rows @ full).max() <= 1e-7
    assert float(problem.g @ full) == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_with_limits_out_of_the_way_the_step_is_that_of_plain_trpo():
    limited, plain = random_problem(3), random_problem(3)
    limited.excesses.fill_(-1e9)
    plain.rows, plain.excesses = plain.rows[:0], plain.excesses[:0]
    step = limited.step()
    assert plain.step(attempt=None).outcome is step.outcome is Outcome.ACCEPTED
    assert th.equal(limited.moved, plain.moved)
    assert step.multipliers == (0.0, 0.0)
    assert step.limited_changes == tuple((limited.rows @ limited.moved).tolist())


@pytest.mark.parametrize("cg_max_steps", [1, 2, 3])
def test_an_unfinished_solve_keeps_the_quadratic_and_linear_models_all_the_same(cg_max_steps):
    for seed in range(20):
        problem = random_problem(seed, m=1, scale=0.3)
        step, full = problem.step(cg_max_steps=cg_max_steps), problem.visited[0]
        assert 0.5 * full @ problem.fisher @ full <= DELTA * (1 + 1e-7)
        if step.outcome is Outcome.LIMITED:
            assert (problem.excesses + problem.rows @ full).max() <= 1e-7


def test_out_of_reach_the_step_is_the_recovery_of_the_paper():
    problem = random_problem(0, m=1)
    problem.excesses.fill_(1e3)
    step = problem.step(damping=0.1)
    b = problem.rows[0]
    x = th.linalg.solve(problem.fisher + 0.1 * th.eye(5, dtype=th.float64), b)
    th.testing.assert_close(problem.visited[0], -(2.0 * DELTA / (b @ x)).sqrt() * x)  # equation 14
    assert step.outcome is Outcome.RECOVERED
    assert step.limited_changes[0] < 0.0


def test_a_broken_limit_is_mended_even_if_the_surrogate_falls():
    step = problem_in_space([1.0, 0, 0], [[1.0, 0, 0]], [0.01]).step()
    assert step.outcome is Outcome.LIMITED
    assert step.improvement == pytest.approx(-0.01)
    assert step.limited_changes == pytest.approx((-0.01,))


def test_without_a_gradient_of_the_surrogate_a_broken_limit_is_mended_all_the_same():
    problem = random_problem(1, m=1)
    problem.g.zero_()
    problem.excesses.fill_(1e-3)
    assert problem.step().outcome is Outcome.LIMITED
    assert (problem.rows @ problem.moved).item() == pytest.approx(-1e-3)
    kept = random_problem(1, m=1)
    kept.g.zero_()
    kept.excesses.fill_(-1.0)
    assert kept.step().outcome is Outcome.ZERO_GRADIENT


def test_a_limit_whose_quantity_has_no_gradient_does_not_stop_the_step():
    problem = random_problem(2, m=1)
    problem.rows.zero_()
    problem.excesses.fill_(5.0)
    assert problem.step().outcome is Outcome.ACCEPTED
    assert problem.moved.any()


@pytest.mark.parametrize("excess", [-0.01, 0.0, 0.01])
def test_candidates_are_held_to_what_is_measured(excess):
    """The limited quantity bends upwards, so the full step breaks its limit, or does not mend it."""
    problem = random_problem(5, m=1, bend=3.0)
    problem.excesses.fill_(excess)
    step = problem.step()
    for d in problem.visited[:-1]:
        change = float(problem.rows[0] @ d + 3.0 * d @ d)
        assert change > max(-excess, 0.0) or (excess <= 0.0 and problem.g @ d <= 0.0) or (excess > 0.0 and change >= 0.0)
    if step.outcome.is_accepted:
        assert step.limited_changes[0] <= max(-excess, 0.0)
    else:
        assert not problem.moved.any()


@settings(max_examples=40)
@given(st.integers(0, 2**32), st.integers(1, 3), st.floats(0.0, 30.0))
def test_no_accepted_candidate_exceeds_what_is_left_to_a_limit_or_breaks_it_further(seed, m, bend):
    problem = random_problem(seed, m, scale=0.1, bend=bend)
    problem.excesses[0] = 0.0 if seed % 2 else problem.excesses[0]
    if problem.step().outcome.is_accepted:
        changes = problem.rows @ problem.moved + bend * problem.moved @ problem.moved
        assert (changes <= (-problem.excesses).clamp(min=0.0) + 1e-12).all()


def test_a_plain_step_that_mends_a_broken_limit_must_improve_the_surrogate():
    problem = problem_in_space([1.0] * 3, [[-1.0] * 3], [0.01])
    problem.evaluate = lambda: Candidate(0.9, (0.0, -0.02))  # type: ignore[method-assign]
    assert problem.step().outcome is Outcome.NO_IMPROVEMENT
    problem.evaluate = lambda: Candidate(1.1, (0.0, -0.02))  # type: ignore[method-assign]
    assert problem.step().outcome is Outcome.ACCEPTED


def test_without_a_trust_region_nothing_is_mended():
    problem = random_problem(1, m=1)
    problem.excesses.fill_(1e-3)
    assert problem.step(delta=0.0).outcome is Outcome.EMPTY_REGION
    problem.g.zero_()
    assert problem.step(delta=0.0).outcome is Outcome.EMPTY_REGION


def test_a_step_that_mends_nothing_is_undone():
    problem = random_problem(5, m=1)
    problem.excesses.fill_(1e3)
    problem.evaluate = lambda: Candidate(1.0, (0.0, 0.0))  # type: ignore[method-assign]
    step = problem.step()
    assert step.outcome is Outcome.NO_RECOVERY
    assert not problem.moved.any()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_end_the_step(bad):
    problem = random_problem(5, m=1)
    problem.excesses.fill_(bad)
    assert problem.step().outcome is Outcome.NON_FINITE_GRADIENT
    problem = random_problem(5, m=1)
    problem.rows[0, 0] = bad
    assert problem.step().outcome is Outcome.NON_FINITE_GRADIENT


def test_an_error_leaves_the_parameters_as_they_were():
    problem = random_problem(0)

    def fail():
        assert problem.moved.any()
        raise KeyboardInterrupt

    problem.evaluate = fail  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        problem.step()
    assert not problem.moved.any()


def test_the_basis_is_orthonormal_in_the_metric_and_spans_no_rounding():
    problem = random_problem(0)
    x = th.randn(5, 3, generator=th.Generator().manual_seed(0), dtype=th.float64)
    x = th.cat([x, x[:, :1] + 1e-9], dim=1)
    targets = [problem.g, problem.g, problem.g, problem.g]
    solutions = [Solution(each, problem.g - problem.fisher @ each, 1, 1.0, Termination.ITERATION_LIMIT) for each in x.T]
    basis = orthonormal_basis(solutions, targets)
    assert basis.shape == (5, 3)
    th.testing.assert_close(basis.T @ problem.fisher @ basis, th.eye(3, dtype=th.float64))
    nothing = Solution(th.zeros(5), problem.g, 0, 1.0, Termination.NON_POSITIVE_CURVATURE)
    assert orthonormal_basis([nothing], [problem.g]) is None


def test_excesses_are_added_in_units_of_their_gradients():
    model = problem_in_space([1.0] * 3, [[2.0, 0, 0], [0, 4.0, 0], [0, 0, 1.0]], [1.0, 1.0, -1.0]).limited()
    assert total_excess(None, model) == pytest.approx(0.75)
    assert total_excess(Candidate(0.0, (0.0, -0.5, -3.0, 9.0)), model) == pytest.approx(0.25)
