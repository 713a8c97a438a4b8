"""The three changes of the developer guide: their files, and the lines that they change in the package."""

import importlib.util
import re
import sys
import types
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from helpers.pages import DOCS

import sb3_trpo.trpo
import sb3_trpo.update.constraints
import sb3_trpo.update.policy_step
from sb3_trpo import TRPO
from sb3_trpo.distributions.registry import CORE_KINDS
from sb3_trpo.numerics.conjugate_gradient import ConjugateGradient
from sb3_trpo.numerics.linear_operator import LinearOperator, Termination
from sb3_trpo.numerics.trust_region import Outcome

GUIDE = DOCS / "developer"
PACKAGE = Path(sb3_trpo.trpo.__file__).parent


def load(monkeypatch, name, as_module=None):
    """Import a file of the guide, possibly under the name that it would have in the package."""
    name_in_package = as_module or name
    spec = importlib.util.spec_from_file_location(name_in_package, GUIDE / "changes" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name_in_package, module)
    spec.loader.exec_module(module)
    return module


def patched(text, diff):
    """Apply a diff without line numbers: each part must be found exactly once."""
    for part in diff.split("@@\n")[1:]:
        lines = [(line[:1] or " ", line[1:] + "\n") for line in part.splitlines()]
        old, new = ("".join(line for mark, line in lines if mark in marks) for marks in (" -", " +"))
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return text


def apply(monkeypatch, index):
    """Let ``TRPO`` use ``policy_step.py`` as one of the guide's diffs changes it; keep the records of its steps."""
    diff = re.findall(
        r"^```diff\n--- sb3_trpo/update/policy_step.py\n(.*?)^```$", (GUIDE / "worked_changes.md").read_text(), re.M | re.S
    )
    source = patched((PACKAGE / "update" / "policy_step.py").read_text(), diff[index])
    module = types.ModuleType("changed_policy_step")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile(source, "changed policy_step.py", "exec"), module.__dict__)
    records = []
    monkeypatch.setattr(sb3_trpo.trpo, "PolicyStepSettings", module.PolicyStepSettings)
    monkeypatch.setattr(
        sb3_trpo.trpo, "policy_step", lambda *arguments: records.append(module.policy_step(*arguments)) or records[-1]
    )
    return records


class Matrix(LinearOperator):
    """A dense matrix."""

    def __init__(self, matrix):
        super().__init__(len(matrix))
        self.matrix = matrix

    def __matmul__(self, v):
        return self.matrix @ v

    def diagonal(self):
        return self.matrix.diagonal()


def badly_scaled(n=30):
    """Make a symmetric positive definite matrix whose diagonal varies over eight orders of magnitude, and a vector."""
    generator = th.Generator().manual_seed(0)
    noise = 0.02 * th.randn(n, n, generator=generator, dtype=th.float64)
    scale = th.logspace(-4, 4, n, dtype=th.float64).sqrt()
    return scale[:, None] * (th.eye(n, dtype=th.float64) + noise @ noise.T) * scale, th.randn(
        n, generator=generator, dtype=th.float64
    )


def test_the_preconditioned_solver_solves_and_needs_fewer_products(monkeypatch):
    solver = load(monkeypatch, "preconditioned").PreconditionedConjugateGradient
    matrix, b = badly_scaled()
    solution = solver(30, 1e-10)(Matrix(matrix), b)
    assert solution.termination is Termination.CONVERGED
    th.testing.assert_close(solution.x, th.linalg.solve(matrix, b), rtol=1e-6, atol=0.0)
    th.testing.assert_close(solution.residual, b - matrix @ solution.x, rtol=0.0, atol=1e-8)
    assert solution.iterations < 15
    assert ConjugateGradient(30, 1e-10)(Matrix(matrix), b).termination is Termination.ITERATION_LIMIT


@pytest.mark.parametrize(
    ("diagonal", "termination"),
    [
        ((1.0, -1.0), Termination.NON_POSITIVE_CURVATURE),
        ((1.0, np.nan), Termination.NON_FINITE),
        ((1.0, 2.0), Termination.CONVERGED),
    ],
)
def test_the_preconditioned_solver_names_how_it_stopped(monkeypatch, diagonal, termination):
    solver = load(monkeypatch, "preconditioned").PreconditionedConjugateGradient(10, 1e-8)
    for b in ([1.0, 1.0], [0.0, 0.0]):
        solution = solver(Matrix(th.diag(th.tensor(diagonal))), th.tensor(b))
        assert solution.x.isfinite().all()
        assert solution.termination is (termination if any(b) else Termination.CONVERGED)


def test_the_preconditioned_solver_takes_steps_of_trpo(monkeypatch):
    module, solved = load(monkeypatch, "preconditioned", "sb3_trpo.numerics.preconditioned"), []
    solver = module.PreconditionedConjugateGradient
    solve = solver.__call__
    monkeypatch.setattr(solver, "__call__", lambda *arguments: solved.append(solve(*arguments)) or solved[-1])
    records = apply(monkeypatch, 0)
    TRPO("MlpPolicy", "Pendulum-v1", n_steps=128, policy_kwargs={"net_arch": [8]}, seed=0, device="cpu").learn(256)
    assert [record.step.outcome for record in records] == [Outcome.ACCEPTED] * 2
    assert all(0.0 < record.step.kl <= 0.01 for record in records)
    assert [record.step.solution for record in records] == solved


def beta_at(module, n=5, dimensions=2):
    """Make a distribution at random parameters."""
    output = 2.0 * th.randn(n, 2 * dimensions, generator=th.Generator().manual_seed(0))
    return module.BetaDistribution(dimensions).proba_distribution(output)


def test_the_beta_distribution_is_that_of_torch_after_a_change_of_variables(monkeypatch):
    module = load(monkeypatch, "beta")
    distribution = beta_at(module)
    actions = distribution.sample()
    assert (actions.abs() < 1.0).all()
    scaled = th.distributions.TransformedDistribution(distribution.distribution, th.distributions.AffineTransform(-1.0, 2.0))
    th.testing.assert_close(distribution.log_prob(actions), scaled.log_prob(actions).sum(1))
    single = module.BetaDistribution(2).proba_distribution(th.zeros(1, 4))
    grid = th.linspace(-1.0, 1.0, 1001)[:, None].expand(-1, 2)
    assert (single.log_prob(grid) <= single.log_prob(single.mode())).all()
    samples = single.proba_distribution(th.zeros(100_000, 4))
    th.testing.assert_close(-samples.log_prob(samples.sample()).mean(), samples.entropy()[0], rtol=0.0, atol=0.01)


def test_the_metric_of_the_beta_kind_is_the_hessian_of_its_kl(monkeypatch):
    module = load(monkeypatch, "beta")
    z = tuple(part.double() for part in module.BetaKind().parameters(beta_at(module)))
    kind, theta = module.BetaKind(), th.stack(z)
    assert kind.kl(z, z).abs().max() < 1e-12
    hessian = th.autograd.functional.hessian(lambda new: kind.kl(z, tuple(new)).sum(), theta)
    dz = tuple(th.randn_like(part) for part in z)
    th.testing.assert_close(th.stack(kind.fisher_metric(z)(dz)), th.einsum("ijkabc,abc->ijk", hessian, th.stack(dz)))


class Steer(gym.Env):
    """Rewards actions near the observation, in a Box whose bounds are not -1 and 1."""

    observation_space = spaces.Box(-1.0, 1.0, (2,))
    action_space = spaces.Box(np.array([-3.0, 0.0], np.float32), np.array([3.0, 10.0], np.float32))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps, self.goal = 0, self.np_random.uniform(-1.0, 1.0, 2).astype(np.float32)
        return self.goal, {}

    def step(self, action):
        assert self.action_space.contains(action)  # nothing is clipped
        middle, half = (
            (self.action_space.high + self.action_space.low) / 2,
            (self.action_space.high - self.action_space.low) / 2,
        )
        reward = -float(np.square((action - middle) / half - self.goal).sum())
        self.steps, self.goal = self.steps + 1, self.np_random.uniform(-1.0, 1.0, 2).astype(np.float32)
        return self.goal, reward, False, self.steps == 50, {}


def test_a_beta_policy_learns_within_its_trust_region_and_survives_saving(monkeypatch, tmp_path):
    module = load(monkeypatch, "beta")
    model = module.BetaTRPO(module.BetaPolicy, Steer(), n_steps=500, gamma=0.0, target_kl=0.05, seed=0, device="cpu")
    outcomes, returns = [], []
    for _ in range(8):
        model.learn(500, reset_num_timesteps=False)
        outcomes.append(model.policy_outcome)
        returns.append(np.mean([episode["r"] for episode in list(model.ep_info_buffer)[-10:]]))
        assert model.logger.name_to_value["train/kl_divergence_loss"] <= 0.05
    assert set(outcomes) == {Outcome.ACCEPTED}
    assert returns[-1] > 0.8 * returns[0]  # both are negative
    model.save(tmp_path / "beta.zip")
    loaded = module.BetaTRPO.load(tmp_path / "beta.zip")
    observation = np.array([0.3, -0.4], np.float32)
    action, _ = loaded.predict(observation, deterministic=True)
    np.testing.assert_array_equal(action, model.predict(observation, deterministic=True)[0])
    assert Steer.action_space.contains(action)


def test_a_beta_policy_is_refused_by_an_algorithm_that_does_not_know_it(monkeypatch):
    module = load(monkeypatch, "beta")
    assert not any(isinstance(kind, module.BetaKind) for kind in CORE_KINDS)
    with pytest.raises(TypeError, match="No Fisher metric is known for BetaDistribution"):
        TRPO(module.BetaPolicy, Steer(), device="cpu")


@pytest.fixture
def bounded(monkeypatch):
    """Make an algorithm with the second constraint, and the records of its steps."""
    module = load(monkeypatch, "ratio_variance")
    monkeypatch.setattr(sb3_trpo.update.constraints, "ratio_variance", module.ratio_variance, raising=False)
    return type("Bounded", (TRPO,), {"max_ratio_variance": 0.005}), apply(monkeypatch, 1)


def test_steps_satisfy_the_second_constraint(bounded):
    algorithm, records = bounded
    algorithm("MlpPolicy", "Pendulum-v1", n_steps=256, line_search_max_iter=20, seed=0, device="cpu").learn(768)
    assert [record.step.outcome for record in records] == [Outcome.ACCEPTED] * 3
    values = [record.step.line_search.candidate.values for record in records]
    assert all(kl <= 0.01 and variance <= 0.005 for kl, variance in values)
    assert all(record.step.line_search.evaluations > 1 for record in records)  # the KL alone would allow the full step


def test_a_step_that_violates_the_second_constraint_says_so(bounded):
    algorithm, records = bounded
    algorithm.max_ratio_variance = 1e-9
    model = algorithm("MlpPolicy", "Pendulum-v1", n_steps=256, line_search_max_iter=2, seed=0, device="cpu").learn(256)
    assert model.policy_outcome is Outcome.CONSTRAINT_NEVER_SATISFIED
    assert records[0].step.description == "constraint never satisfied (variance of the ratios)"
