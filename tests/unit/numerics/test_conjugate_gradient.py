import math
from typing import NamedTuple

import pytest
import torch as th
from helpers.operators import BrokenOperator, DenseOperator
from helpers.states import same
from hypothesis import given, strategies as st

from sb3_trpo.numerics.conjugate_gradient import ConjugateGradient
from sb3_trpo.numerics.linear_operator import Termination

CONVERGED, LIMIT = Termination.CONVERGED, Termination.ITERATION_LIMIT
NON_POSITIVE, NON_FINITE = Termination.NON_POSITIVE_CURVATURE, Termination.NON_FINITE
UNSOUND = (NON_POSITIVE, NON_FINITE)
EPSILON = th.finfo(th.float64).eps


def vector(*values):
    return th.tensor(values, dtype=th.float64)


def spd(*eigenvalues, seed=0):
    root = th.randn((len(eigenvalues),) * 2, generator=th.Generator().manual_seed(seed), dtype=th.float64)
    basis = th.linalg.qr(root).Q
    return basis @ vector(*eigenvalues).diag() @ basis.T


def hilbert(n):
    rows = th.arange(1, n + 1, dtype=th.float64)
    return 1.0 / (rows[:, None] + rows - 1.0)


class Case(NamedTuple):
    matrix: th.Tensor
    b: th.Tensor
    termination: Termination
    iterations: int
    max_iterations: int = 50
    residual_tol: float = 1e-10
    bad_call: int = 0
    bad: float = 0.0


ONES = th.ones(4, dtype=th.float64)
CASES = {
    "identity": Case(th.eye(4, dtype=th.float64), vector(1, -2, 3, 4), CONVERGED, 1),
    "one-dimensional": Case(vector(4.0).diag(), vector(-8.0), CONVERGED, 1),
    "four distinct eigenvalues": Case(spd(1, 2, 3, 4), ONES, CONVERGED, 4),
    "two distinct eigenvalues": Case(spd(1, 5, 5, 5), ONES, CONVERGED, 2),
    "b an eigenvector": Case(vector(2, 3, 4, 5).diag(), vector(0, 0, 7, 0), CONVERGED, 1),
    "badly conditioned, clustered": Case(spd(1e8, 1e8, 1, 1), ONES, CONVERGED, 2, residual_tol=1e-6),
    "badly conditioned, spread": Case(hilbert(8), hilbert(8) @ th.ones(8, dtype=th.float64), CONVERGED, 6, residual_tol=1e-8),
    "badly conditioned, cut short": Case(hilbert(8), th.ones(8, dtype=th.float64), LIMIT, 5, max_iterations=5),
    "badly scaled, tiny": Case(1e-12 * spd(1, 2, 3, 4), ONES, CONVERGED, 4),
    "badly scaled, huge": Case(1e12 * spd(1, 2, 3, 4), ONES, CONVERGED, 4),
    "zero b": Case(spd(1, 2, 3, 4), 0.0 * ONES, CONVERGED, 0),
    "loose tolerance": Case(vector(1.0, 1.1).diag(), vector(1, 1), CONVERGED, 1, residual_tol=0.1),
    "iteration limit": Case(spd(1, 10, 100, 1000), ONES, LIMIT, 2, max_iterations=2),
    "tolerance zero, exact arithmetic": Case(vector(2, 2).diag(), vector(1, 1), CONVERGED, 1, residual_tol=0.0),
    "tolerance zero, limit": Case(spd(1, 2, 3, 4), ONES, LIMIT, 3, max_iterations=3, residual_tol=0.0),
    "singular, consistent": Case(vector(1, 2, 0, 0).diag(), vector(1, 1, 0, 0), CONVERGED, 2),
    "singular, inconsistent": Case(vector(1, 0).diag(), vector(1, 1), NON_POSITIVE, 1),
    "zero operator": Case(th.zeros((4, 4), dtype=th.float64), ONES, NON_POSITIVE, 0),
    "indefinite, at once": Case(vector(1, -1).diag(), vector(1, 1), NON_POSITIVE, 0),
    "indefinite, later": Case(vector(4, -1).diag(), vector(1, 1), NON_POSITIVE, 1),
    "negative definite": Case(-spd(1, 2, 3, 4), ONES, NON_POSITIVE, 0),
    "NaN at once": Case(spd(1, 2, 3, 4), ONES, NON_FINITE, 0, bad_call=1, bad=math.nan),
    "NaN later": Case(spd(1, 2, 3, 4), ONES, NON_FINITE, 2, bad_call=3, bad=math.nan),
    "infinity at once": Case(spd(1, 2, 3, 4), ONES, NON_FINITE, 0, bad_call=1, bad=math.inf),
    "minus infinity at once": Case(spd(1, 2, 3, 4), ONES, NON_FINITE, 0, bad_call=1, bad=-math.inf),
    "infinity where p is zero": Case(vector(1, 2).diag(), vector(0, 1), NON_FINITE, 0, bad_call=1, bad=math.inf),
    "curvature that overflows": Case(vector(1e306, 1e306).diag(), vector(100, 100), NON_FINITE, 0),
    "iterate that overflows": Case(vector(1e-300).diag(), vector(1e10), NON_FINITE, 0),
}


def solve(case):
    operator = BrokenOperator(case.matrix, case.bad_call, case.bad)
    return ConjugateGradient(case.max_iterations, case.residual_tol)(operator, case.b), operator


@pytest.fixture(params=CASES.values(), ids=CASES)
def case(request):
    return request.param


def test_termination_and_iterations_are_as_expected(case):
    solution, operator = solve(case)
    assert (solution.termination, solution.iterations) == (case.termination, case.iterations)
    assert len(operator.products) == solution.iterations + (solution.termination in UNSOUND)


def test_iterate_is_finite_and_its_reported_residual_is_true(case):
    solution, _ = solve(case)
    assert solution.x.isfinite().all()
    true = case.b - case.matrix @ solution.x
    rounding = 100 * EPSILON * ((case.matrix.abs() @ solution.x.abs()).norm() + case.b.norm()).item()
    th.testing.assert_close(solution.residual, true, rtol=0.0, atol=rounding)
    relative = (true.norm() / case.b.norm()).item() if case.b.any() else 0.0
    assert solution.relative_residual == pytest.approx(relative, rel=1e-6, abs=rounding / max(case.b.norm().item(), 1e-300))
    assert (solution.relative_residual <= case.residual_tol) == (solution.termination is CONVERGED)


CONVERGING = {name: case for name, case in CASES.items() if case.termination is CONVERGED}


@pytest.mark.parametrize("case", CONVERGING.values(), ids=CONVERGING)
def test_converged_iterate_is_the_dense_solution(case):
    exact = th.linalg.pinv(case.matrix, hermitian=True) @ case.b
    eigenvalues = th.linalg.eigvalsh(case.matrix)
    positive = eigenvalues[eigenvalues > 1e-12 * eigenvalues.max()]
    tolerance = case.residual_tol * (positive.max() / positive.min()).item() + 1e-14
    assert (solve(case)[0].x - exact).norm() <= tolerance * exact.norm()


def test_the_solver_is_deterministic_uses_no_random_numbers_and_leaves_the_right_hand_side(case):
    state, b = th.get_rng_state(), case.b.clone()
    first, _ = solve(case)
    assert th.equal(th.get_rng_state(), state)
    th.rand(())
    second, _ = solve(case)
    assert same([second.x, second.residual, case.b], [first.x, first.residual, b])


def test_iterates_minimise_the_energy_norm_over_the_krylov_space():
    matrix, b = spd(1, 3, 9, 27, 81), th.arange(1, 6, dtype=th.float64)
    for k in range(1, 6):
        krylov = th.stack([th.linalg.matrix_power(matrix, power) @ b for power in range(k)], 1)
        krylov = th.linalg.qr(krylov).Q
        best = krylov @ th.linalg.solve(krylov.T @ matrix @ krylov, krylov.T @ b)
        th.testing.assert_close(ConjugateGradient(k, 0.0)(DenseOperator(matrix), b).x, best, rtol=1e-8, atol=1e-8)


@st.composite
def spd_systems(draw):
    n = draw(st.integers(1, 6))
    hundredths = st.integers(-200, 200).map(lambda value: value / 100)
    root = th.tensor(draw(st.lists(hundredths, min_size=n * n, max_size=n * n)), dtype=th.float64).view(n, n)
    return root @ root.T + th.eye(n, dtype=th.float64), vector(*draw(st.lists(hundredths, min_size=n, max_size=n)))


@given(spd_systems())
def test_n_iterations_solve_any_well_conditioned_system_of_n_equations(system):
    matrix, b = system
    operator = DenseOperator(matrix)
    solution = ConjugateGradient(len(b), 1e-8)(operator, b)
    assert solution.termination is CONVERGED
    assert solution.iterations == len(operator.products) <= len(b)
    th.testing.assert_close(solution.x, th.linalg.solve(matrix, b), rtol=1e-6, atol=1e-7)
