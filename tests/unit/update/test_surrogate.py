import gc
import math
import weakref
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch as th
from helpers.contract_tools import moved_since, parameters
from helpers.operators import dense
from helpers.oracle import (
    CASES,
    LARGE_CASES,
    SMALL_CASES,
    DensePolicy,
    chunked,
    interrupt_at,
    joint_kl,
    make_policy,
    make_transitions,
    networks_of,
    torch_distributions,
)
from helpers.states import same

from sb3_trpo.distributions.argument_checks import unvalidated
from sb3_trpo.distributions.registry import CORE_KINDS, kind_of
from sb3_trpo.numerics.conjugate_gradient import ConjugateGradient
from sb3_trpo.numerics.flat import assign, flatten, unflatten
from sb3_trpo.numerics.line_search import BacktrackingLineSearch, Candidate
from sb3_trpo.numerics.trust_region import Outcome, trust_region_step
from sb3_trpo.parallel.communicator import Communicator
from sb3_trpo.update.actor import AutogradActor, NetworkActor
from sb3_trpo.update.constraints import PolicyConstraint, mean_kl, state_kl
from sb3_trpo.update.surrogate import PolicyObjective

N_STATES = 7


class Setup:
    """A policy, its transitions, and objectives on them over all parameters, the critic's included."""

    def __init__(self, name, kind="autograd", n_states=N_STATES):
        self.policy = make_policy(CASES[name])
        self.transitions = make_transitions(CASES[name], self.policy, n_states)
        self.parameters = list(self.policy.parameters())
        networks = networks_of(self.policy)
        layers = kind == "network"
        self.actor = NetworkActor(networks, self.parameters) if layers else AutogradActor(self.policy, self.parameters)

    def objective(self, size=N_STATES, **changes):
        chunks = chunked(self.transitions, size)
        return replace(PolicyObjective(self.actor, self.parameters, chunks, [mean_kl(0.01)]), **changes)

    def random_vector(self, seed=0):
        shape = flatten(self.parameters).shape
        return th.randn(shape, generator=th.Generator().manual_seed(seed), dtype=th.float64)

    def move(self, length=0.05):
        vector = self.random_vector(3)
        pieces = unflatten(length * vector / vector.norm(), self.parameters)
        assign(self.parameters, [parameter.detach() + piece for parameter, piece in zip(self.parameters, pieces, strict=True)])

    def distributions(self):
        return torch_distributions(self.transitions.inputs.distribution(self.policy))

    def surrogate(self, ent_coef):
        """Mean surrogate and mean entropy of the current policy from what SB3's ``evaluate_actions`` says."""
        inputs, actions, old_log_prob, advantages = self.transitions[:4]
        _, log_prob, entropy = self.policy.evaluate_actions(inputs.observations, actions)
        ratio = (log_prob - old_log_prob).exp()
        entropy = -ratio * log_prob if entropy is None else entropy
        return (ratio * advantages + ent_coef * entropy).mean(), entropy.mean()


def kinds(cases):
    """Name every way to differentiate each case: by layers where the policy is a plain stack of them."""
    plain = [name for name in cases if networks_of(make_policy(cases[name])) is not None]
    return [(name, "autograd") for name in cases] + [(name, "network") for name in plain]


@pytest.fixture(params=kinds(SMALL_CASES), ids="-".join)
def small(request):
    return Setup(*request.param)


@pytest.fixture(params=kinds(CASES), ids="-".join)
def setup(request):
    return Setup(*request.param)


@pytest.fixture
def gaussian():
    return Setup("gaussian")


@pytest.fixture(params=["autograd", "network"])
def either(request):
    return Setup("gaussian", request.param)


def test_all_but_mixed_dicts_are_plain_stacks():
    plain = [name for name, kind in kinds(CASES) if kind == "network"]
    assert plain == [name for name in CASES if name != "dict"]


def test_the_rollout_is_compared_with_the_policy(either, monkeypatch):
    """Log-probabilities are 0.3 off at two of seven states: by hand, the mean square is 2 * 0.09 / 7."""
    with th.no_grad():
        _, log_prob, _ = either.policy.evaluate_actions(either.transitions.inputs.observations, either.transitions.actions)
    shift = th.tensor([0.3, 0, 0, -0.3, 0, 0, 0], dtype=log_prob.dtype)
    either.transitions = either.transitions._replace(old_log_prob=log_prob + shift)
    for changes in ({}, {"size": 2}, {"tolerance": 0.2}):
        found = either.objective(**changes).local_model()
        assert found.log_prob_error == pytest.approx(math.sqrt(0.18 / 7))
        assert found.model.rounding == 0.0
    monkeypatch.setattr(PolicyObjective, "_rounding_error", lambda *_: 0.05)  # of the same order
    found = either.objective().local_model()
    assert (found.log_prob_error, found.model.rounding) == (0.0, pytest.approx(0.18 / 7))


def test_an_interrupt_while_rounding_is_estimated_leaves_the_parameters_bit_for_bit(either):
    distribution = either.actor.distribution(either.transitions.inputs)
    snapshots = [tuple(part.detach() for part in kind_of(distribution, CORE_KINDS).parameters(distribution))]
    objective, before = either.objective(), parameters(either.policy)
    for moment in range(10_000):
        try:
            with th.enable_grad(), interrupt_at(moment):
                objective._rounding_error(snapshots)
        except KeyboardInterrupt:
            assert same(parameters(either.policy), before), moment
        else:
            break
    assert moment > 50
    assert same(parameters(either.policy), before)


def test_fisher_matrix_and_diagonal_are_the_dense_ones_and_the_hessian_of_the_mean_kl(small):
    oracle = DensePolicy(small.policy, small.transitions.inputs.observations)
    fisher, matrix = small.objective(3).local_model().model.fisher, oracle.fisher()
    th.testing.assert_close(dense(fisher), matrix, rtol=1e-9, atol=1e-12)
    th.testing.assert_close(dense(fisher), oracle.kl_hessian(), rtol=1e-9, atol=1e-12)
    th.testing.assert_close(fisher.diagonal(), matrix.diagonal(), rtol=1e-9, atol=1e-12)
    assert matrix.any()


@pytest.mark.parametrize(
    ("name", "kind"), kinds(LARGE_CASES), ids=lambda part: "-".join(part) if isinstance(part, tuple) else part
)
def test_fisher_products_of_image_and_dict_policies_are_the_dense_ones(name, kind):
    setup = Setup(name, kind, n_states=3)
    product = DensePolicy(setup.policy, setup.transitions.inputs.observations).fisher_product()
    operator = setup.objective().local_model().model.fisher
    for seed in (0, 1):
        v = setup.random_vector(seed)
        expected = product(v)
        th.testing.assert_close(operator @ v, expected, rtol=1e-8, atol=1e-10 * expected.abs().max().item())


@pytest.mark.parametrize("ent_coef", [0.0, 0.3])
def test_surrogate_and_gradient_are_those_of_sb3s_log_probabilities(setup, ent_coef):
    surrogate, entropy = setup.surrogate(ent_coef)
    gradient = flatten(th.autograd.grad(surrogate, setup.parameters, materialize_grads=True))
    model, mean_entropy, _ = setup.objective(ent_coef=ent_coef).local_model()
    assert model.surrogate == pytest.approx(surrogate.item())
    assert mean_entropy == pytest.approx(entropy.item())
    th.testing.assert_close(model.gradient, gradient)
    assert model.gradient.any()
    assert not model.gradient.requires_grad


@pytest.mark.parametrize("ent_coef", [0.0, 0.3])
def test_the_model_describes_the_old_policy_and_evaluate_measures_the_current_one(setup, ent_coef):
    old = setup.distributions()
    model = setup.objective(ent_coef=ent_coef).local_model().model
    assert model.evaluate() == (model.surrogate, (0.0,))
    setup.move()
    candidate = model.evaluate()
    assert candidate.kl == pytest.approx(joint_kl(old, setup.distributions()).mean().item())
    assert candidate.kl > 0.0
    assert candidate.surrogate == pytest.approx(setup.surrogate(ent_coef)[0].item())
    assert candidate.surrogate != model.surrogate
    assert all(parameter.grad is None for parameter in setup.parameters)


def flat_values(candidate: Candidate) -> list[float]:
    return [candidate.surrogate, *candidate.values]


def rewarded_terms(policies):
    """Depend on everything that a constraint is given."""
    log_prob = policies.log_ratio + policies.chunk.old_log_prob
    mean = policies.kind.parameters(policies.distribution)[0]
    return log_prob * policies.chunk.advantages + (policies.old[0] + mean)[:, 0]


@pytest.mark.parametrize("size", [3, N_STATES])
def test_further_constraints_are_measured_beside_the_kl(gaussian, size):
    constraints = [mean_kl(0.01), PolicyConstraint("rewarded", 1.0, rewarded_terms)]
    objective = gaussian.objective(size, constraints=constraints)
    old = gaussian.distributions()
    model = objective.local_model().model
    assert model.constraints is constraints
    gaussian.move()
    kl, rewarded = model.evaluate().values
    assert kl == pytest.approx(joint_kl(old, gaussian.distributions()).mean().item())
    log_prob = gaussian.policy.evaluate_actions(gaussian.transitions.inputs.observations, gaussian.transitions.actions)[1]
    means = old[0].mean[:, 0] + gaussian.distributions()[0].mean[:, 0]
    assert rewarded == pytest.approx((log_prob * gaussian.transitions.advantages + means).mean().item())


@pytest.mark.parametrize(("size", "level"), [(3, 0.3), (N_STATES, 0.75), (3, 1.0)])
def test_a_quantile_of_the_kl_is_that_over_all_states_but_not_over_padding(either, size, level):
    weights = th.ones(N_STATES, dtype=th.float64)
    weights[[1, 4]] = 0.0
    either.transitions = either.transitions._replace(weights=weights, n_padding=2)
    objective = either.objective(size, constraints=[mean_kl(0.01), state_kl(0.1, level), mean_kl(0.02)])
    old = either.distributions()
    model = objective.local_model().model
    either.move()
    kl = joint_kl(old, either.distributions()).detach()[weights > 0.0].numpy()
    mean, quantile, same_mean = model.evaluate().values
    assert mean == same_mean == pytest.approx(kl.mean())
    assert quantile == pytest.approx(np.quantile(kl, level, method="inverted_cdf"))


@pytest.mark.parametrize("size", [1, 3, 5])
def test_chunks_change_no_result(setup, size):
    whole, parts = (setup.objective(each, ent_coef=0.2).local_model() for each in (N_STATES, size))
    v = setup.random_vector()
    th.testing.assert_close(parts.model.gradient, whole.model.gradient)
    th.testing.assert_close(parts.model.fisher @ v, whole.model.fisher @ v)
    assert parts.model.surrogate == pytest.approx(whole.model.surrogate)
    assert parts.entropy == pytest.approx(whole.entropy)
    setup.move()
    assert flat_values(parts.model.evaluate()) == pytest.approx(flat_values(whole.model.evaluate()))


def test_every_mean_goes_through_the_one_reduction(gaussian):
    weights = []

    class Doubling(Communicator):
        def mean(self, total, weight):
            weights.append(weight)
            return (2.0 * total) / weight

    plain, doubled = gaussian.objective(3).local_model(), gaussian.objective(3, communicator=Doubling()).local_model()
    v = gaussian.random_vector()
    assert doubled.model.surrogate == pytest.approx(2.0 * plain.model.surrogate)
    assert doubled.entropy == pytest.approx(2.0 * plain.entropy)
    th.testing.assert_close(doubled.model.gradient, 2.0 * plain.model.gradient)
    th.testing.assert_close(doubled.model.fisher @ v, 2.0 * (plain.model.fisher @ v))
    gaussian.move()
    expected = [2.0 * value for value in flat_values(plain.model.evaluate())]
    assert flat_values(doubled.model.evaluate()) == pytest.approx(expected)
    assert set(weights) == {N_STATES}


class Saved:
    """A tensor that autograd keeps for a backward pass; detached, for its graph would refer back to it."""

    def __init__(self, tensor, alive):
        self.tensor = tensor.detach()
        alive.add(self)


def test_no_more_graphs_are_held_for_many_chunks_than_for_two(gaussian):
    chunks, held = chunked(gaussian.transitions, 1), []
    for some in (chunks[:2], chunks):
        alive = weakref.WeakSet()
        with th.autograd.graph.saved_tensors_hooks(partial(Saved, alive=alive), lambda saved: saved.tensor):
            model = gaussian.objective(chunks=some, fisher_chunks=some).local_model().model
            _ = model.fisher @ gaussian.random_vector()
        gc.collect()
        held.append(len(alive))
    assert held[1] == held[0] > 0


def test_policies_with_nan_are_measured_rather_than_refused(small):
    model = small.objective().local_model().model
    with unvalidated(), th.no_grad():
        for parameter in small.parameters:
            parameter.fill_(math.nan)
        assert all(math.isnan(value) for value in flat_values(model.evaluate()))


@pytest.mark.parametrize("size", [3, N_STATES])
def test_step_improves_a_policy_inside_its_trust_region(setup, size):
    old = setup.distributions()
    model = setup.objective(size).local_model().model
    gradients = unflatten(model.gradient, setup.parameters)
    with_gradient = {name for (name, _), g in zip(setup.policy.named_parameters(), gradients, strict=True) if g.any()}
    before = parameters(setup.policy)
    step = trust_region_step(model, ConjugateGradient(15, 1e-10), BacktrackingLineSearch(0.8, 10), damping=0.1)
    assert step.outcome is Outcome.ACCEPTED
    true_kl = joint_kl(old, setup.distributions()).mean().item()
    assert step.kl == pytest.approx(true_kl)
    assert 0.001 < true_kl <= 0.01
    assert setup.objective().local_model().model.surrogate == pytest.approx(step.surrogate)
    assert step.surrogate > model.surrogate
    assert moved_since(before, setup.policy) == with_gradient
