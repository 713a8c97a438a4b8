import math

import pytest
import torch as th
from helpers.operators import BrokenOperator
from helpers.oracle import interrupt_at
from helpers.quadratic import Quadratic
from hypothesis import given, settings, strategies as st

from sb3_trpo.numerics.conjugate_gradient import ConjugateGradient
from sb3_trpo.numerics.flat import flatten
from sb3_trpo.numerics.line_search import BacktrackingLineSearch, Candidate, Constraint, Judgement, LineSearchResult
from sb3_trpo.numerics.linear_operator import LinearOperator, Solution, Termination
from sb3_trpo.numerics.trust_region import LocalModel, Outcome, step_to_boundary, trust_region_step


def take_step(model, damping=0.0, cg_max_steps=20, line_search_max_iter=5):
    return trust_region_step(
        model, ConjugateGradient(cg_max_steps, 1e-12), BacktrackingLineSearch(0.5, line_search_max_iter), damping
    )


def vector(*values):
    return th.tensor(values, dtype=th.float64)


def random_quadratic(seed, n=5, excess=1.0):
    root, g = th.randn((n + 1, n), generator=th.Generator().manual_seed(seed), dtype=th.float64).split([n, 1])
    return Quadratic(root @ root.T + 0.1 * th.eye(n, dtype=th.float64), g[0], excess)


def natural_step(fisher, g, target_kl):
    """Maximize ``g.d`` subject to ``d.F d / 2 <= target_kl``."""
    x = th.linalg.solve(fisher, g)
    return (2.0 * target_kl / (g @ x)).sqrt() * x


@settings(max_examples=50)
@given(st.integers(0, 2**32), st.sampled_from([1e-6, 0.01, 10.0]))
def test_full_step_is_the_constrained_optimum(seed, target_kl):
    problem = random_quadratic(seed)
    take_step(problem.model(target_kl), cg_max_steps=50)
    exact = natural_step(problem.fisher, problem.g, target_kl)
    th.testing.assert_close(problem.visited[0], exact, rtol=1e-6, atol=1e-6 * exact.norm().item())
    assert 0.5 * problem.visited[0] @ problem.fisher @ problem.visited[0] == pytest.approx(target_kl, rel=1e-9)


@pytest.mark.parametrize("cg_max_steps", [1, 2, 3])
def test_the_step_of_an_unfinished_solve_ends_on_the_boundary_too(cg_max_steps):
    problem = random_quadratic(1)
    step = take_step(problem.model(), cg_max_steps=cg_max_steps)
    assert step.solution.termination is Termination.ITERATION_LIMIT
    assert 0.5 * problem.visited[0] @ problem.fisher @ problem.visited[0] == pytest.approx(0.01, rel=1e-9)


def test_step_exactly_on_the_boundary_is_accepted_whole():
    problem = Quadratic(4.0 * th.eye(3, dtype=th.float64), vector(0, 8, 0))
    step = take_step(problem.model(8.0))
    assert (step.outcome, step.line_search.fraction, step.kl) == (Outcome.ACCEPTED, 1.0, 8.0)
    assert flatten(problem.parameters).tolist() == [0.0, 2.0, 0.0]


@pytest.mark.parametrize("damping", [0.1, 10.0])
def test_damped_step_is_scaled_by_the_damped_curvature_and_so_stays_inside(damping):
    problem = random_quadratic(0)
    step = take_step(problem.model(), damping=damping)
    exact = natural_step(problem.fisher + damping * th.eye(5, dtype=th.float64), problem.g, 0.01)
    th.testing.assert_close(flatten(problem.parameters).detach(), exact)
    assert step.outcome is Outcome.ACCEPTED
    assert step.line_search.fraction == 1.0
    assert step.kl < 0.01


def test_step_to_boundary_uses_the_curvature_of_the_iterate_itself():
    problem, x = random_quadratic(2), vector(1, 2, 3, 4, 5)
    solution = Solution(x, problem.g - problem.fisher @ x, 1, 1.0, Termination.ITERATION_LIMIT)
    step = step_to_boundary(solution, problem.g, 0.02)
    assert 0.5 * step @ problem.fisher @ step == pytest.approx(0.02, rel=1e-9)
    assert step @ x == pytest.approx((step.norm() * x.norm()).item())


@pytest.mark.parametrize(("excess", "k"), [(0.5, 0), (1.5, 1), (3.9, 1), (4.1, 2), (100.0, 4)])
def test_steps_shrink_until_the_true_kl_is_inside(excess, k):
    problem = random_quadratic(3, excess=excess)
    step = take_step(problem.model())
    assert (step.outcome, step.line_search.fraction, step.line_search.evaluations) == (Outcome.ACCEPTED, 0.5**k, k + 1)
    for power, displacement in enumerate(problem.visited):
        th.testing.assert_close(displacement, 0.5**power * problem.visited[0])
    assert th.equal(flatten(problem.parameters).detach(), problem.visited[-1])


def test_negative_curvature_after_the_first_iteration_still_gives_a_step():
    problem = Quadratic(vector(4, -1, 1).diag(), vector(1, 1, 0))
    step = take_step(problem.model())
    assert step.solution.termination is Termination.NON_POSITIVE_CURVATURE
    assert step.outcome is Outcome.ACCEPTED
    assert problem.visited[0][0] == problem.visited[0][1] > 0.0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("k", [2, 3, 4])
@pytest.mark.parametrize("damping", [0.0, 0.5])
def test_a_product_that_overflows_after_the_first_iteration_leaves_the_step_of_the_previous_iterate(k, bad, damping):
    problem, healthy = (random_quadratic(6, excess=0.99) for _ in range(2))  # inside, whatever rounds
    step = take_step(problem.model(fisher=BrokenOperator(problem.fisher, k, bad)), damping)
    assert (step.solution.termination, step.solution.iterations) == (Termination.NON_FINITE, k - 1)
    assert step.outcome is Outcome.ACCEPTED
    take_step(healthy.model(), damping, cg_max_steps=k - 1)
    assert th.equal(flatten(problem.parameters), flatten(healthy.parameters))


def test_record_of_an_accepted_step():
    problem = random_quadratic(4, excess=3.0)
    step = take_step(problem.model())
    d = flatten(problem.parameters).detach()
    assert step.kl == pytest.approx(float(1.5 * d @ problem.fisher @ d))
    assert step.surrogate == 1.0 + float(problem.g @ d)
    assert step.gradient_norm == pytest.approx(problem.g.norm().item())
    assert step.expected_improvement == pytest.approx(float(problem.g @ d))
    assert step.improvement == step.surrogate - 1.0
    assert step.line_search.candidate == (step.surrogate, (step.kl,))


def test_record_of_an_exhausted_line_search():
    problem = random_quadratic(4, excess=1e6)
    step = take_step(problem.model(), line_search_max_iter=3)
    predicted = float(problem.g @ problem.visited[-1])  # exactly, for the surrogate is linear
    assert (step.outcome, step.surrogate, step.kl) == (Outcome.KL_NEVER_SATISFIED, 1.0, 0.0)
    assert (step.expected_improvement, step.improvement) == pytest.approx((predicted, predicted))


NEAR, FAR, WORSE = Candidate(1.0, (0.0,)), Candidate(1.0, (1.0,)), Candidate(-1.0, (0.0,))
SAME, NAN_L, NAN_KL = Candidate(0.0, (0.0,)), Candidate(math.nan, (0.0,)), Candidate(1.0, (math.nan,))
COSTLY, FAR_AND_COSTLY = Candidate(1.0, (0.0, 3.0)), Candidate(1.0, (1.0, 3.0))
COST = Constraint("cost", 2.0)
NAN_PAYLOAD = th.tensor([0x7FF8_0000_DEAD_BEEF, 0x7FF0_0000_0000_0001]).view(th.float64)


def awkward_parameters():
    """Numbers that arithmetic would not reproduce: -0.0, subnormals, NaNs with payload; one part not contiguous."""
    return [
        th.nn.Parameter(vector(-0.0, 0.0, 5e-324)),
        th.nn.Parameter(vector(0.1, -1e308, 1.0 / 3.0, 1e-308).view(2, 2).T),
        th.nn.Parameter(NAN_PAYLOAD.clone()),
    ]


class Script(LinearOperator):
    """
    A problem and its F that answer from a script, whose last entry repeats; an exception in it is raised.

    :param products: factors, F v = factor * scales * v
    :param candidates: what ``evaluate`` returns
    """

    def __init__(
        self, products=(1.0,), candidates=(NEAR,), gradient=None, surrogate=0.0, rounding=0.0, target_kl=0.01, constraints=()
    ):
        super().__init__(9)
        self.products, self.candidates = products, candidates
        self.n_products = self.n_candidates = 0
        self.parameters = awkward_parameters()
        self.before = self.state()
        gradient = th.arange(1.0, 10.0, dtype=th.float64) if gradient is None else gradient
        constraints = (Constraint("KL", target_kl), *constraints)
        self.model = LocalModel(self.parameters, surrogate, gradient, self, constraints, self.evaluate, rounding)

    def __matmul__(self, v: th.Tensor) -> th.Tensor:
        self.n_products += 1
        scales = th.arange(1.0, 10.0, dtype=th.float64)
        return self.answer(self.products, self.n_products) * scales * v

    def evaluate(self) -> Candidate:
        self.n_candidates += 1
        assert self.state() != self.before
        return self.answer(self.candidates, self.n_candidates)

    @staticmethod
    def answer(script, call):
        entry = script[min(call, len(script)) - 1]
        if isinstance(entry, BaseException):
            raise entry
        return entry

    def state(self):
        return [(p.data_ptr(), p.stride(), p.detach().numpy().tobytes()) for p in self.parameters]


G = th.ones(9, dtype=th.float64)
BAD_G = {value: th.cat([G[1:], vector(value)]) for value in (math.nan, math.inf, -math.inf)}

FAILURES = [
    *((Outcome.EMPTY_REGION, {"target_kl": 0.0, "rounding": rounding}) for rounding in (0.0, 1.0)),
    (Outcome.EMPTY_REGION, {"constraints": [COST, Constraint("second KL", 0.0)]}),
    *((Outcome.ZERO_GRADIENT, {"gradient": 0.0 * G, "target_kl": target_kl}) for target_kl in (0.01, 0.0)),
    *((Outcome.LOST_IN_ROUNDING, {"rounding": rounding}) for rounding in (1.01e-4, math.inf)),
    *((Outcome.NON_FINITE_GRADIENT, {"gradient": bad}) for bad in BAD_G.values()),
    *((Outcome.NON_FINITE_GRADIENT, {"surrogate": bad}) for bad in (math.nan, math.inf)),
    *((Outcome.NON_POSITIVE_CURVATURE, {"products": [factor]}) for factor in (0.0, -1.0)),
    (Outcome.NON_POSITIVE_CURVATURE, {"products": [-1.0], "damping": 1.0}),
    *((Outcome.NON_FINITE_CURVATURE, {"products": [bad]}) for bad in (math.nan, math.inf)),
    (Outcome.NON_FINITE_CURVATURE, {"products": [-math.inf], "damping": 1.0}),
    (Outcome.NON_FINITE_CURVATURE, {"products": [1e200], "gradient": 1e-161 * G}),  # a sound x, whose x^T F x underflows
    (Outcome.NON_FINITE_CANDIDATE, {"products": [1.0, math.nan], "candidates": [NAN_L]}),
    (Outcome.KL_NEVER_SATISFIED, {"products": [1.0, math.inf], "candidates": [FAR]}),
    *((Outcome.NON_FINITE_CANDIDATE, {"candidates": script}) for script in ([NAN_L], [FAR, WORSE, NAN_KL])),
    *((Outcome.KL_NEVER_SATISFIED, {"candidates": script}) for script in ([FAR], [NAN_L, WORSE, FAR])),
    (Outcome.KL_NEVER_SATISFIED, {"candidates": [COSTLY, FAR_AND_COSTLY], "constraints": [COST]}),
    (Outcome.CONSTRAINT_NEVER_SATISFIED, {"candidates": [FAR_AND_COSTLY, COSTLY], "constraints": [COST]}),
    *((Outcome.NO_IMPROVEMENT, {"candidates": script}) for script in ([WORSE], [SAME], [NAN_L, FAR, WORSE])),
]


@pytest.mark.parametrize(("outcome", "script"), FAILURES, ids=lambda value: getattr(value, "value", ""))
def test_every_failure_is_named_and_leaves_the_parameters_bit_for_bit(outcome, script):
    problem = Script(**{name: value for name, value in script.items() if name != "damping"})
    step = take_step(problem.model, script.get("damping", 0.0), line_search_max_iter=3)
    assert step.outcome is outcome
    assert problem.state() == problem.before
    assert step.kl == 0.0
    assert step.surrogate == pytest.approx(problem.model.surrogate, nan_ok=True)
    assert (step.line_search is not None) == (problem.n_candidates > 0)
    assert (step.solution is not None) == (problem.n_products > 0)


@pytest.mark.parametrize(
    ("last", "description"),
    [
        (COSTLY, "constraint never satisfied (cost)"),
        (FAR_AND_COSTLY, "KL never satisfied (KL)"),
        (Candidate(-1.0, (0.0, 0.0)), "no improvement"),
        (Candidate(1.0, (0.0, 0.0)), "accepted"),
    ],
)
def test_a_step_describes_its_end_and_names_the_violated_constraint(last, description):
    assert take_step(Script(candidates=[last], constraints=[COST]).model).description == description


def test_a_hundredth_of_the_radius_may_be_lost_in_rounding():
    assert take_step(Script(rounding=0.99e-4).model).outcome is Outcome.ACCEPTED


def test_failures_cover_every_outcome_but_acceptance_and_those_of_limits():
    assert {outcome for outcome, *_ in FAILURES} == {each for each in Outcome if not each.is_accepted} - {Outcome.NO_RECOVERY}


def test_a_step_that_satisfies_every_constraint_is_accepted():
    step = take_step(Script(candidates=[COSTLY, Candidate(1.0, (0.005, 2.0))], constraints=[COST]).model)
    assert (step.outcome, step.line_search.evaluations, step.kl) == (Outcome.ACCEPTED, 2, 0.005)


def test_solver_and_line_search_are_whatever_is_handed_over():
    problem, asked = random_quadratic(7), []

    def solver(operator, b):
        asked.append((operator.size, b))
        return Solution(2.0 * b, b - operator @ (2.0 * b), 1, 1.0, Termination.ITERATION_LIMIT)

    def line_search(evaluate, old_surrogate, constraints):
        asked.append((old_surrogate, [constraint.name for constraint in constraints]))
        return LineSearchResult(0.25, 1, evaluate(0.25), Judgement.ACCEPTED)

    step = trust_region_step(problem.model(), solver, line_search, damping=0.0)
    assert (step.outcome, step.line_search.fraction) == (Outcome.ACCEPTED, 0.25)
    assert asked == [(5, problem.g), (1.0, ["KL"])]
    d = flatten(problem.parameters).detach()
    th.testing.assert_close(d / d.norm(), problem.g / problem.g.norm())
    assert step.kl == pytest.approx(0.01 / 16)


def test_accepted_step_moves_every_parameter_in_its_storage():
    problem = Script()
    assert take_step(problem.model).outcome is Outcome.ACCEPTED
    for before, after in zip(problem.before, problem.state(), strict=True):
        assert before[:2] == after[:2]
        assert before[2] != after[2]


@pytest.mark.parametrize("error", [RuntimeError("broken"), KeyboardInterrupt()], ids=["RuntimeError", "KeyboardInterrupt"])
@pytest.mark.parametrize("call", [1, 2, 3])
@pytest.mark.parametrize("place", ["products", "candidates"])
def test_exceptions_pass_through_and_leave_the_parameters_bit_for_bit(place, call, error):
    healthy = {"products": [1.0], "candidates": [FAR]}
    problem = Script(**(healthy | {place: (call - 1) * healthy[place] + [error]}))
    with pytest.raises(type(error)) as caught:
        take_step(problem.model)
    assert caught.value is error
    assert (problem.n_products if place == "products" else problem.n_candidates) == call
    assert problem.state() == problem.before


@pytest.mark.parametrize("candidates", [[FAR], [FAR, NEAR]], ids=["rejected", "accepted"])
def test_an_interrupt_at_any_moment_leaves_old_or_accepted_parameters(candidates):
    accepted = Script(candidates=candidates)
    take_step(accepted.model, line_search_max_iter=2)
    allowed = [[part[2] for part in state] for state in (accepted.before, accepted.state())]

    for moment in range(100_000):
        problem = Script(candidates=candidates)
        try:
            with th.enable_grad(), interrupt_at(moment):
                take_step(problem.model, line_search_max_iter=2)
        except KeyboardInterrupt:
            assert [part[2] for part in problem.state()] in allowed, f"interrupted at moment {moment}"
        else:
            break
    assert moment > 100
