"""Masked distributions against a dense float64 policy over the allowed options alone."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from helpers.envs import VECTOR
from helpers.masked import (
    ACTOR,
    dense_entropy,
    dense_kl,
    dense_log_prob,
    dense_policy,
    each_space,
    model_of,
    random_masks,
    several,
    unpack,
)
from helpers.oracle import SMALL, Case, make_policy, networks_of
from helpers.recurrent_tools import options_of
from hypothesis import given, settings, strategies as st
from torch.autograd.functional import hessian, jacobian

from sb3_trpo.maskable import MaskableTRPO, MlpPolicy
from sb3_trpo.maskable.reader import MaskedInputs
from sb3_trpo.networks.plain_network import read_networks
from sb3_trpo.numerics.flat import assign, flatten, unflatten
from sb3_trpo.rollouts.inputs import ObservationInputs
from sb3_trpo.rollouts.transitions import Transitions
from sb3_trpo.update.actor import AutogradActor, NetworkActor
from sb3_trpo.update.constraints import mean_kl
from sb3_trpo.update.surrogate import PolicyObjective

DISTRIBUTIONS = MaskableTRPO.distribution_kinds
CLOSE = {"rtol": 1e-9, "atol": 1e-12}

each_actor = pytest.mark.parametrize("kind", ["autograd", "network"])


class Problem(NamedTuple):
    """A policy in float64, some transitions, and their masks."""

    policy: Any
    parameters: list[th.nn.Parameter]
    observations: th.Tensor
    masks: th.Tensor
    sizes: list[int]
    actions: th.Tensor
    old_log_prob: th.Tensor
    advantages: th.Tensor

    def theta(self) -> th.Tensor:
        return flatten(self.parameters).detach()

    def dense(self, theta: th.Tensor) -> th.Tensor:
        return dense_policy(theta, self.observations, self.masks, self.sizes)

    def surrogate(self, theta: th.Tensor, ent_coef: float = 0.0) -> th.Tensor:
        policy = self.dense(theta)
        ratio = (dense_log_prob(policy, self.actions, self.sizes) - self.old_log_prob).exp()
        return (ratio * self.advantages).mean() + ent_coef * dense_entropy(policy)

    def objective(self, kind: str, size: int = 100, ent_coef: float = 0.0) -> PolicyObjective:
        if kind == "network":
            is_double = self.observations.dtype == th.float64
            networks = networks_of(self.policy, DISTRIBUTIONS) if is_double else read_networks(self.policy, DISTRIBUTIONS)
            actor = NetworkActor(networks, self.parameters, DISTRIBUTIONS)
        else:
            actor = AutogradActor(self.policy, self.parameters, DISTRIBUTIONS)
        starts = range(0, len(self.masks), size)
        chunks = [self.transitions(slice(start, start + size)) for start in starts]
        return PolicyObjective(actor, self.parameters, chunks, [mean_kl(0.01)], ent_coef=ent_coef)

    def transitions(self, rows: slice) -> Transitions:
        inputs = MaskedInputs(ObservationInputs(self.observations[rows]), self.masks[rows])
        advantages = self.advantages[rows]
        return Transitions(inputs, self.actions[rows], self.old_log_prob[rows], advantages, returns=advantages)

    def random_vector(self, length: float, seed: int = 3) -> th.Tensor:
        vector = th.randn(self.theta().shape, generator=th.Generator().manual_seed(seed), dtype=th.float64)
        return length * vector / vector.norm()

    def move(self, length: float = 0.3) -> None:
        assign(self.parameters, unflatten(self.theta() + self.random_vector(length), self.parameters))


def problem(space: spaces.Space, seed: int = 0, n: int = 7, scale: float = 1.0, masks: np.ndarray | None = None) -> Problem:
    policy, sizes = make_policy(Case(MlpPolicy, VECTOR, space, SMALL)), options_of(space)
    named = dict(policy.named_parameters())
    parameters = [named[name] for name in ACTOR]
    generator = np.random.default_rng(seed)
    with th.no_grad():
        for parameter in parameters:
            parameter.copy_(th.as_tensor(scale * generator.standard_normal(parameter.shape)))
    masks = random_masks(generator, sizes, n) if masks is None else masks
    starts = np.cumsum([0, *sizes[:-1]])
    parts = [masks[:, start : start + size] for start, size in zip(starts, sizes, strict=True)]
    actions = th.as_tensor(np.stack([(generator.random(part.shape) * part).argmax(1) for part in parts], axis=1))
    actions = actions.flatten() if isinstance(space, spaces.Discrete) else actions.double()
    observations = th.as_tensor(generator.uniform(-1.0, 1.0, (n, 3)).astype(np.float32)).double()  # which SB3 makes float32
    flags = th.as_tensor(masks.astype(np.float32))
    theta = flatten(parameters).detach()
    log_prob = dense_log_prob(dense_policy(theta, observations, flags, sizes), actions, sizes)
    noise, advantages = th.as_tensor(generator.standard_normal((2, n)))
    return Problem(policy, parameters, observations, flags, sizes, actions, log_prob + 0.1 * noise, advantages)


def matrix(operator: Any, n: int) -> th.Tensor:
    return th.stack([operator @ v for v in th.eye(n, dtype=th.float64)])


@each_actor
@each_space
@pytest.mark.parametrize(("size", "ent_coef"), [(3, 0.0), (3, 0.3), (100, 0.3)])
def test_an_update_uses_what_the_oracle_computes_over_allowed_options(space, kind, size, ent_coef):
    given = problem(space)
    theta, surrogate = given.theta(), partial(given.surrogate, ent_coef=ent_coef)
    old = given.dense(theta)
    model, entropy, _ = given.objective(kind, size, ent_coef).local_model()
    assert model.surrogate == pytest.approx(surrogate(theta).item(), rel=1e-9)
    assert entropy == pytest.approx(dense_entropy(old).item(), rel=1e-9)
    th.testing.assert_close(model.gradient, jacobian(surrogate, theta), **CLOSE)
    fisher = matrix(model.fisher, len(theta))
    th.testing.assert_close(fisher, hessian(lambda new: dense_kl(old, given.dense(new)), theta), **CLOSE)
    assert model.gradient.any()
    assert fisher.any()
    given.move()
    candidate = model.evaluate()
    assert candidate.kl == pytest.approx(dense_kl(old, given.dense(given.theta())).item(), rel=1e-9)
    assert candidate.kl > 1e-4
    assert candidate.surrogate == pytest.approx(surrogate(given.theta()).item(), rel=1e-9)


ACTION_SPACES = st.one_of(
    st.integers(2, 5).map(spaces.Discrete),
    st.lists(st.integers(2, 4), min_size=1, max_size=3).map(spaces.MultiDiscrete),
    st.integers(1, 3).map(spaces.MultiBinary),
)
PROBLEMS = st.builds(
    problem, ACTION_SPACES, st.integers(0, 2**16), st.integers(1, 4), st.sampled_from([0.01, 0.3, 1.0, 3.0, 30.0])
)
KINDS = st.sampled_from(["autograd", "network"])


@settings(max_examples=50)
@given(PROBLEMS, KINDS, st.sampled_from([1e-6, 0.01, 1.0, 100.0]))
def test_the_kl_is_never_negative_and_0_at_the_same_parameters(given, kind, length):
    model = given.objective(kind, 2).local_model().model
    assert model.evaluate() == (model.surrogate, (0.0,))
    given.move(length)
    assert model.evaluate().kl >= 0.0


@settings(max_examples=40)
@given(PROBLEMS, KINDS)
def test_the_fisher_matrix_is_symmetric_and_positive_semidefinite(given, kind):
    fisher = matrix(given.objective(kind).local_model().model.fisher, len(given.theta()))
    largest = max(1.0, fisher.abs().max().item())
    th.testing.assert_close(fisher, fisher.T, rtol=0.0, atol=1e-12 * largest)
    assert th.linalg.eigvalsh(fisher).min() >= -1e-12 * largest


@settings(max_examples=40)
@given(ACTION_SPACES, st.integers(0, 2**16), KINDS, st.sampled_from([-1000.0, -3.0, 1.0, 20.0]), st.data())
def test_nothing_depends_on_the_logits_of_masked_options(space, seed, kind, by, data):
    sizes = options_of(space)
    option = data.draw(st.integers(0, sum(sizes) - 1))
    masks = random_masks(np.random.default_rng(seed), sizes, 4)
    start = max(start for start in np.cumsum([0, *sizes[:-1]]) if start <= option)
    masks[:, start] |= True
    masks[:, start + 1] |= True
    masks[:, option] = False
    results = []
    for change in (0.0, by):
        given = problem(space, seed, n=4, masks=masks)
        with th.no_grad():
            for parameter, sign in zip(given.parameters[2:], (1.0, -1.0), strict=True):
                parameter[option] += sign * change
        model, entropy, _ = given.objective(kind, ent_coef=0.2).local_model()
        vector = given.random_vector(1.0)
        numbers = [model.gradient, model.fisher @ vector, th.tensor([model.surrogate, entropy])]
        for flat in numbers[:2]:
            *_, of_weight, of_bias = unpack(flat, 3, sum(sizes))
            assert th.cat([of_weight[option], of_bias[option, None]]).abs().max() < 1e-12
        given.move()
        results.append(th.cat([*numbers, th.tensor([model.evaluate().surrogate, model.evaluate().kl])]))
    th.testing.assert_close(*results, rtol=1e-8, atol=1e-10)


@each_actor
@each_space
@pytest.mark.parametrize("scale", [1e2, 1e4])
@pytest.mark.parametrize("is_single", [False, True], ids=["float64", "float32"])
def test_huge_logits_give_no_nan(space, kind, scale, is_single):
    for seed in range(5):
        given = problem(space, seed, scale=scale)
        if is_single:
            given.policy.float()
            for module in given.policy.modules():
                module._forward_pre_hooks.clear()
            singles = [part.float() for part in (given.observations, given.old_log_prob, given.advantages)]
            given = given._replace(observations=singles[0], old_log_prob=singles[1], advantages=singles[2])
        model, entropy, _ = given.objective(kind).local_model()
        vector = given.random_vector(1.0).to(given.theta().dtype)
        for numbers in (model.gradient, model.fisher @ vector, th.tensor([model.surrogate, entropy])):
            assert numbers.isfinite().all()
        assign(given.parameters, unflatten(given.theta() + 0.1 * scale * vector, given.parameters))
        kl = model.evaluate().kl
        assert np.isfinite(kl)
        assert kl >= 0.0


@each_actor
@each_space
def test_one_option_left_gives_no_entropy_and_no_kl(space, kind):
    sizes = options_of(space)
    given = problem(space, masks=random_masks(np.random.default_rng(1), sizes, 7, share=0.0))
    assert given.masks.sum() == 7 * len(sizes)
    model, entropy, _ = given.objective(kind).local_model()
    assert entropy == 0.0
    assert not model.gradient.any()
    assert not (model.fisher @ given.random_vector(1.0)).any()
    given.move(10.0)
    assert model.evaluate().kl == 0.0


@each_space
def test_masked_actions_have_probability_0(space):
    masks = random_masks(np.random.default_rng(0), options_of(space), 64)
    policy = model_of(several(1, space)).policy
    with th.no_grad():
        distribution = policy.get_distribution(th.rand(64, 3), action_masks=masks)
    factors = getattr(distribution, "distributions", None) or [distribution.distribution]
    probabilities = th.cat([factor.probs for factor in factors], dim=1).numpy()
    assert (probabilities[~masks] == 0.0).all()
    assert (probabilities[masks] > 0.0).all()
