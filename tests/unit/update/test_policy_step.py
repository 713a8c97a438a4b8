"""The step as a whole: which transitions it uses, and that every setting reaches its part."""

import dataclasses

import pytest
import torch as th
from helpers.envs import RandomEnv

from sb3_trpo import TRPO
from sb3_trpo.networks.plain_network import read_networks
from sb3_trpo.numerics.trust_region import Outcome
from sb3_trpo.parallel.communicator import ALONE
from sb3_trpo.rollouts.batch import RolloutBatch
from sb3_trpo.settings import Scheduled
from sb3_trpo.update.policy_step import PolicyStepSettings, _choose_transitions, policy_step

N_STEPS = 48


@pytest.fixture(name="model")
def collected():
    model = TRPO("MlpPolicy", RandomEnv(), n_steps=N_STEPS, batch_size=N_STEPS, n_critic_updates=0, seed=0, device="cpu")
    model.learn(N_STEPS)
    model._last_obs = model.env.reset()
    model.collect_rollouts(model.env, model._init_callback(None), model.rollout_buffer, N_STEPS)
    return model


def settings_of(model, **changes):
    return dataclasses.replace(PolicyStepSettings.of(model, Scheduled(target_kl=0.01, ent_coef=0.0)), **changes)


def step_of(model, **changes):
    batch = RolloutBatch([model.rollout_buffer], model.rollout_reader)
    networks = read_networks(model.policy, model.distribution_kinds)
    return policy_step(model.policy, networks, networks.policy_tensors, batch, settings_of(model, **changes), ALONE).step


def test_settings_are_the_models(model):
    model.cg_damping, model.fisher_subsampling = 0.25, 3
    settings = settings_of(model)
    assert (settings.cg_damping, settings.fisher_subsampling, settings.target_kl) == (0.25, 3, 0.01)


def test_the_kl_is_bounded_by_target_kl(model):
    step = step_of(model, target_kl=0.003)
    assert step.outcome is Outcome.ACCEPTED
    assert 0.0 < step.kl <= 0.003


def test_the_solver_has_its_limits(model):
    assert step_of(model, cg_max_steps=2).solution.iterations == 2
    assert step_of(model, cg_residual_tol=0.5).solution.relative_residual <= 0.5


def test_the_line_search_has_its_limits(model):
    """A Fisher matrix of two states lets the first candidates leave the trust region."""
    few = {"fisher_subsampling": N_STEPS // 2, "cg_damping": 1e-6, "line_search_shrinking_factor": 0.9}
    step = step_of(model, **few, line_search_max_iter=3)
    assert (step.outcome, step.line_search.evaluations) == (Outcome.KL_NEVER_SATISFIED, 3)
    assert step.line_search.fraction == pytest.approx(0.9**2)


def test_the_scale_of_advantages_counts_only_if_they_are_not_normalized(model):
    def gradient_norm(scale, **changes):
        model.rollout_buffer.advantages *= scale
        norm = step_of(model, target_kl=0.0, **changes).gradient_norm
        model.rollout_buffer.advantages /= scale
        return norm

    assert gradient_norm(4.0) == pytest.approx(gradient_norm(1.0), rel=1e-4)
    raw = {"normalize_advantage": False}
    assert gradient_norm(4.0, **raw) == pytest.approx(4.0 * gradient_norm(1.0, **raw), rel=1e-4)


def test_every_kth_transition_counts(model):
    before = step_of(model, target_kl=0.0, sub_sampling_factor=3, normalize_advantage=False).gradient_norm
    model.rollout_buffer.advantages[1::3] = 1e6
    assert step_of(model, target_kl=0.0, sub_sampling_factor=3, normalize_advantage=False).gradient_norm == before
    model.rollout_buffer.advantages[::3] += 1.0
    assert step_of(model, target_kl=0.0, sub_sampling_factor=3, normalize_advantage=False).gradient_norm != before


def test_the_fisher_matrix_may_use_fewer_transitions_than_the_gradient(model):
    before = {name: value.clone() for name, value in model.policy.state_dict().items()}
    whole = step_of(model)
    model.policy.load_state_dict(before)
    part = step_of(model, fisher_subsampling=8)
    assert whole.gradient_norm == part.gradient_norm
    assert not th.equal(whole.solution.x, part.solution.x)


@pytest.mark.parametrize(("every", "of_those"), [(1, 1), (1, 4), (2, 1), (2, 3), (3, 2)])
def test_the_fisher_matrix_uses_every_kth_of_the_transitions_of_the_step(model, every, of_those):
    settings = settings_of(model, sub_sampling_factor=every, fisher_subsampling=of_those)
    batch = RolloutBatch([model.rollout_buffer], model.rollout_reader)
    chunks, fisher_chunks = _choose_transitions(batch, settings, 7, ALONE)
    observations = th.as_tensor(model.rollout_buffer.observations.reshape(N_STEPS, -1))

    def seen(parts):
        return th.cat([part.inputs.observations for part in parts])

    assert th.equal(seen(chunks), observations[::every])
    assert (fisher_chunks is None) == (of_those == 1)
    if fisher_chunks is not None:
        assert th.equal(seen(fisher_chunks), observations[:: every * of_those])
