"""The step under limits of small policies, against dense float64 matrices and a general solver (SLSQP)."""

from typing import NamedTuple

import numpy as np
import pytest
import torch as th
from helpers.oracle import CASES, DensePolicy, joint_kl, make_policy, make_transitions, networks_of, take
from scipy.optimize import minimize

from sb3_trpo.numerics.conjugate_gradient import ConjugateGradient
from sb3_trpo.numerics.flat import flatten
from sb3_trpo.numerics.limited_step import limited_step, propose
from sb3_trpo.numerics.line_search import BacktrackingLineSearch
from sb3_trpo.numerics.linear_limits import Region
from sb3_trpo.numerics.linear_operator import DampedOperator
from sb3_trpo.numerics.trust_region import Outcome, trust_region_step
from sb3_trpo.update.actor import AutogradActor, NetworkActor
from sb3_trpo.update.constraints import cost_limit, mean_kl
from sb3_trpo.update.surrogate import PolicyObjective

N, DELTA, DAMPING, SCALE = 15, 1e-4, 0.1, 7.0
SOLVER = ConjugateGradient(400, 1e-13)


class Problem:
    """A policy with two costs, its derivatives by autograd through SB3's own methods, and its dense Fisher matrix."""

    def __init__(self, name: str, way: str) -> None:
        self.policy = make_policy(CASES[name])
        plain = make_transitions(CASES[name], self.policy, N)
        costs = th.randn((N, 2), generator=th.Generator().manual_seed(2), dtype=th.float64)
        with th.no_grad():
            _, log_prob, _ = self.policy.evaluate_actions(plain.inputs.observations, plain.actions)
        self.transitions = plain._replace(old_log_prob=log_prob, cost_advantages=costs - costs.mean(0))
        self.parameters = [*self.policy.parameters()]
        layers = way == "layers"
        networks = networks_of(self.policy)
        self.actor = NetworkActor(networks, self.parameters) if layers else AutogradActor(self.policy, self.parameters)
        self.oracle = DensePolicy(self.policy, plain.inputs.observations)
        self.h = (self.oracle.fisher() + DAMPING * th.eye(len(self.oracle.theta))).numpy()
        self.g, *self.rows = (self._gradient(each) for each in self._surrogates())

    def _surrogates(self) -> list[th.Tensor]:
        """Compute L and the surrogates of both costs at the present parameters."""
        _, log_prob, _ = self.policy.evaluate_actions(self.transitions.inputs.observations, self.transitions.actions)
        ratio = (log_prob - self.transitions.old_log_prob).exp()
        costs = self.transitions.cost_advantages
        return [(ratio * self.transitions.advantages).mean(), *(SCALE * (ratio * each).mean() for each in costs.T)]

    def surrogates(self) -> np.ndarray:
        with th.no_grad():
            return th.stack(self._surrogates()).numpy()

    def _gradient(self, value: th.Tensor) -> np.ndarray:
        grads = th.autograd.grad(value, self.parameters, retain_graph=True, allow_unused=True)
        pairs = zip(grads, self.parameters, strict=True)
        return th.cat([(th.zeros_like(each) if grad is None else grad).flatten() for grad, each in pairs]).numpy()

    def reach(self) -> np.ndarray:
        """Return by how much each cost changes at most within the trust region, to first order."""
        return np.array([np.sqrt(2 * DELTA * b @ np.linalg.solve(self.h, b)) for b in self.rows])

    def model(self, excesses: np.ndarray):
        chunks = []
        for start in range(0, N, 4):
            rows = slice(start, start + 4)
            part = take(self.transitions, rows)
            chunks.append(part._replace(cost_advantages=self.transitions.cost_advantages[rows]))
        limits = [cost_limit(str(i), i, float(excess), SCALE) for i, excess in enumerate(excesses)]
        return PolicyObjective(self.actor, self.parameters, chunks, [mean_kl(DELTA)], limits=limits).local_model().model


class Best(NamedTuple):
    region: Region
    step: np.ndarray


def by_slsqp(problem: Problem, excesses: np.ndarray) -> Best:
    """Solve in coordinates in which the trust region is the unit ball, and limits have gradients of length 1."""
    root = np.linalg.cholesky(problem.h) / np.sqrt(2 * DELTA)
    g, rows = np.linalg.solve(root, problem.g), np.linalg.solve(root, np.array(problem.rows).T).T
    lengths = np.linalg.norm(rows, axis=1)
    g, rows, c = g / np.linalg.norm(g), rows / lengths[:, None], excesses / lengths
    limits = {"type": "ineq", "fun": lambda u: -(c + rows @ u), "jac": lambda u: -rows}
    ball = {"type": "ineq", "fun": lambda u: 1 - u @ u, "jac": lambda u: -2 * u}
    options = {"method": "SLSQP", "tol": 1e-15, "options": {"maxiter": 500}}
    nearest = minimize(lambda u: u @ u, np.zeros(len(g)), jac=lambda u: 2 * u, constraints=[limits], **options).x
    if nearest @ nearest > 1.0:
        return Best(Region.EMPTY, np.linalg.solve(root.T, nearest / np.linalg.norm(nearest)))
    u = minimize(lambda u: -g @ u, nearest, jac=lambda u: -g, constraints=[ball, limits], **options).x
    is_free = g @ u > 1 - 1e-9 and max(c) <= 0.0
    return Best(Region.FREE if is_free else Region.LIMITED, np.linalg.solve(root.T, u))


POLICIES = [(name, "layers") for name in ("gaussian", "categorical", "multi-categorical", "bernoulli", "beta", "gsde")]
POLICIES += [("gaussian", "autograd")]
SHARES = {
    (-2.0, -3.0): Region.FREE,
    (-0.05, -0.1): None,
    (0.0, 0.3): None,
    (0.3, -0.4): None,
    (-0.2, 5.0): Region.EMPTY,
}
"""Excesses in units of what the trust region allows each cost to change by, and what is known beforehand."""


@pytest.mark.parametrize(("name", "way"), POLICIES)
def test_the_step_is_that_of_dense_matrices_and_a_general_solver(name, way):
    problem, regions = Problem(name, way), []
    for shares, known in SHARES.items():
        excesses = np.array(shares) * problem.reach()
        expected, model = by_slsqp(problem, excesses), problem.model(excesses)
        assert known in (None, expected.region)
        proposal = propose(model, SOLVER, DampedOperator(model.fisher, DAMPING))
        full = proposal.full_step.numpy()
        assert proposal.region is expected.region
        assert full @ problem.h @ full / 2 == pytest.approx(DELTA, rel=1e-6) or expected.region is Region.LIMITED
        scale = np.sqrt(expected.step @ problem.h @ expected.step)
        difference = full - expected.step
        assert np.sqrt(difference @ problem.h @ difference) <= 2e-3 * scale
        assert problem.g @ full == pytest.approx(problem.g @ expected.step, rel=1e-4, abs=1e-8)
        if expected.region is not Region.EMPTY:
            assert (excesses + np.array(problem.rows) @ full <= 1e-7 * problem.reach()).all()
        regions.append(expected.region)
    assert {*regions} == {*Region}


NAMES = {Region.FREE: Outcome.ACCEPTED, Region.LIMITED: Outcome.LIMITED, Region.EMPTY: Outcome.RECOVERED}


@pytest.mark.parametrize("shares", SHARES)
@pytest.mark.parametrize("name", ["gaussian", "categorical"])
def test_what_is_taken_keeps_the_kl_and_the_costs_as_they_are_measured(name, shares):
    problem = Problem(name, "layers")
    excesses, theta = np.array(shares) * problem.reach(), flatten(problem.parameters).detach().clone()
    region, before = by_slsqp(problem, excesses).region, problem.surrogates()
    old = problem.oracle.distributions(theta)
    search = BacktrackingLineSearch(0.8, 20)
    step = trust_region_step(problem.model(excesses), SOLVER, search, DAMPING, attempt=limited_step)
    moved = flatten(problem.parameters).detach() - theta
    kl = float(joint_kl(old, problem.oracle.distributions(theta + moved)).mean())
    assert step.outcome is NAMES[region]
    assert step.kl == pytest.approx(kl, rel=1e-6)
    assert 0.0 < kl <= DELTA
    changes = (problem.surrogates() - before)[1:]
    assert step.limited_changes == pytest.approx(changes, rel=1e-6, abs=1e-12)
    assert (changes <= np.maximum(-excesses, 0.0) + 1e-12).all()
    if region is Region.EMPTY:
        broken = int(np.argmax(excesses))
        assert changes[broken] < 0.0
