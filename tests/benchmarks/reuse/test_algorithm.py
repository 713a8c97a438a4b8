"""Reuse of rollouts: V-trace, the surrogate over several policies, and plain TRPO when nothing is reused."""

import copy

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from benchmarks.reuse.algorithm import ReusingTRPO, radius_factor
from benchmarks.reuse.v_trace import Steps, v_trace
from sb3_trpo import TRPO
from sb3_trpo.numerics.flat import flatten
from sb3_trpo.update.actor import make_actor
from sb3_trpo.update.constraints import mean_kl
from sb3_trpo.update.surrogate import PolicyObjective

N_STEPS, N_ENVS = 100, 2  # Pendulum's episodes last 200 steps: every other rollout ends with a time limit
SETTINGS = {"n_steps": N_STEPS, "batch_size": 50, "n_critic_updates": 6, "seed": 0, "device": "cpu"}


def envs(norm_obs=True):
    return VecNormalize(make_vec_env("Pendulum-v1", N_ENVS, seed=0), norm_obs=norm_obs)


def trained(n_updates, cls=ReusingTRPO, env=None, **settings):
    return cls("MlpPolicy", env or envs(), **(SETTINGS | settings)).learn(n_updates * N_STEPS * N_ENVS)


def random_steps(rng, n_steps=30, n_envs=3):
    rewards, values = rng.normal(size=(n_steps, n_envs)), rng.normal(size=(n_steps + 1, n_envs))
    return Steps(rewards, values, rng.random((n_steps, n_envs)) < 0.15)


def by_its_sum(steps, rho, gamma, lam):
    """Sum the corrections to V term by term (arXiv:1802.01561, eq. 1), and the advantages by the step that follows."""
    rewards, values, ends = steps
    deltas = rewards + gamma * (1 - ends) * values[1:] - values[:-1]
    targets, advantages = values.copy(), np.empty_like(rewards)
    for start, env in np.ndindex(rewards.shape):
        product = 1.0
        for t in range(start, len(rewards)):
            capped = min(1.0, rho[t, env])
            targets[start, env] += product * capped * deltas[t, env]
            product *= gamma * lam * capped
            if ends[t, env]:
                break
    for t, env in np.ndindex(rewards.shape):
        goes_on = 0.0 if ends[t, env] else 1.0
        advantages[t, env] = deltas[t, env] + gamma * lam * goes_on * (targets[t + 1, env] - values[t + 1, env])
    return advantages, targets[:-1]


@pytest.mark.parametrize("lam", [0.0, 0.9, 1.0])
def test_v_trace_is_the_sum_of_its_definition(lam):
    rng = np.random.default_rng(0)
    steps, rho = random_steps(rng), rng.lognormal(0.0, 0.7, (30, 3))
    advantages, targets = v_trace(steps, rho, 0.97, lam)
    expected_advantages, expected_targets = by_its_sum(steps, rho, 0.97, lam)
    np.testing.assert_allclose(targets, expected_targets, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(advantages, expected_advantages, rtol=1e-12, atol=1e-12)


def test_v_trace_with_equal_policies_is_gae():
    model = trained(1, TRPO)
    buffer = model.rollout_buffer
    buffer.reset()
    steps = random_steps(np.random.default_rng(1), N_STEPS, N_ENVS)
    buffer.rewards[:], buffer.values[:] = steps.rewards, steps.values[:-1]
    buffer.episode_starts[1:] = steps.ends[:-1]
    buffer.compute_returns_and_advantage(th.tensor(steps.values[-1]), steps.ends[-1])
    found = v_trace(steps, np.ones((N_STEPS, N_ENVS)), model.gamma, model.gae_lambda)
    np.testing.assert_allclose(found.advantages, buffer.advantages, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.targets, buffer.returns, rtol=1e-4, atol=1e-5)


def test_without_reuse_parameters_are_those_of_trpo():
    plain, reusing = trained(4, TRPO), trained(4)
    for name, tensor in plain.policy.state_dict().items():
        assert th.equal(tensor, reusing.policy.state_dict()[name]), name
    assert reusing.weight_records == []


def test_the_newest_rollout_alone_gives_the_surrogate_of_trpo():
    model = trained(1, n_reused_rollouts=2, normalize_advantage=False)
    (corrected,) = model._corrected
    of_trpo = model.rollout_buffer
    for name in ("advantages", "returns", "log_probs"):
        np.testing.assert_allclose(getattr(corrected, name), getattr(of_trpo, name), rtol=1e-4, atol=1e-4)


class Watched(ReusingTRPO):
    """Keeps the policy that each update starts from, and what the update was made of."""

    def _improve_policy(self, batch, networks, split, now):
        self.before = copy.deepcopy(self.policy)
        self.step = super()._improve_policy(batch, networks, split, now)
        return self.step

    def _fit_values(self, networks, parameters, batch, settings):
        fit = super()._fit_values(networks, parameters, batch, settings)
        self.fitted_to = len(batch.readers)
        return fit


@pytest.fixture(scope="module")
def watched():
    """After four updates with other policies, and a learning rate of 0, so that V is always the same."""
    return trained(4, Watched, n_reused_rollouts=2, learning_rate=0.0, target_kl=0.05)


def actor_parameters(policy):
    return [value for name, value in policy.named_parameters() if "value" not in name and "vf" not in name]


def test_the_gradient_is_that_of_the_importance_weighted_surrogate(watched):
    policy, parameters = watched.before, actor_parameters(watched.before)
    rollouts = [each.buffer for each in watched._kept]
    assert len(rollouts) == 3
    observations, actions = (
        th.tensor(np.concatenate([getattr(each, name) for each in rollouts])) for name in ("observations", "actions")
    )
    behavior = th.tensor(np.concatenate([each.log_probs.flatten() for each in rollouts]))
    advantages = np.concatenate([expected_advantages(watched, policy, each) for each in watched._kept])
    ratios = (policy.get_distribution(observations).log_prob(actions) - behavior).exp()
    weight = ratios.detach().double().numpy()
    mean = np.average(advantages, weights=weight)
    standardized = (advantages - mean) / np.sqrt(np.average((advantages - mean) ** 2, weights=weight))
    surrogate = (ratios * th.tensor(standardized, dtype=th.float32)).mean()
    expected = flatten(th.autograd.grad(surrogate, parameters))

    batch = [chunk for each in watched._corrected for chunk in watched.rollout_reader(each).chunks(1, 10**6)]
    actor = make_actor(policy, None, parameters)
    found = PolicyObjective(actor, parameters, batch, [mean_kl(0.05)]).local_model().model
    assert found.surrogate == pytest.approx(surrogate.item(), abs=1e-5)
    th.testing.assert_close(found.gradient, expected, rtol=1e-3, atol=1e-5)
    assert watched.step.gradient_norm == pytest.approx(float(expected.norm()), rel=1e-3)
    assert weight.std() > 0.1  # the policies do differ


def expected_advantages(model, policy, rollout):
    """Compute V-trace advantages from the kept rollout, environment by environment."""
    buffer, found = rollout.buffer, []
    with th.no_grad():
        values = policy.predict_values(th.tensor(buffer.observations)).numpy().reshape(N_ENVS, -1).T
        last = policy.predict_values(th.tensor(rollout.last_observations)).numpy().T
        new = policy.get_distribution(th.tensor(buffer.observations)).log_prob(th.tensor(buffer.actions)).numpy()
    rho = np.exp(new - buffer.log_probs.flatten()).reshape(N_ENVS, -1).T
    ends = np.vstack((buffer.episode_starts[1:], rollout.last_ends))
    found, _ = by_its_sum(Steps(buffer.rewards, np.vstack((values, last)), ends), rho, model.gamma, model.gae_lambda)
    return found.T.flatten()


def test_the_kl_is_that_of_the_newest_policy_over_all_states(watched):
    states = th.tensor(np.concatenate([each.buffer.observations for each in watched._kept]))
    with th.no_grad():
        old, new = (policy.get_distribution(states).distribution for policy in (watched.before, watched.policy))
        kl = th.distributions.kl_divergence(old, new).sum(-1).mean()
    assert watched.step.outcome.is_accepted
    assert watched.step.values[0] == pytest.approx(float(kl), rel=1e-3)
    assert float(kl) <= 0.05


def test_kept_rollouts_are_those_of_the_last_updates_and_share_nothing(watched):
    arrays = [value for value in vars(watched.rollout_buffer).values() if isinstance(value, np.ndarray)]
    for kept in (*(each.buffer for each in watched._kept), *watched._corrected):
        own = [value for value in vars(kept).values() if isinstance(value, np.ndarray)]
        assert not any(np.shares_memory(a, b) for a in arrays for b in own)
    newest = watched._kept[-1].buffer
    np.testing.assert_array_equal(newest.observations, watched.rollout_buffer.observations)
    assert watched.normalize_advantage


def test_the_first_rollout_is_not_reused():
    model = trained(2, n_reused_rollouts=2)
    assert len(model._kept) == 1


def test_weights_are_recorded_for_each_update(watched):
    first, *_, last = watched.weight_records
    assert [each.timesteps for each in watched.weight_records] == [N_STEPS * N_ENVS * i for i in (1, 2, 3, 4)]
    assert first.mean == pytest.approx(1.0, abs=1e-5)
    assert first.effective_share == pytest.approx(1.0, abs=1e-5)
    assert first.drift > 0.0
    assert last.drift is None
    assert last.effective_share < 0.999
    assert last.largest > 1.1


def test_without_v_trace_advantages_and_targets_are_those_of_their_time():
    model = trained(3, n_reused_rollouts=2, v_trace=False, normalize_advantage=False)
    for kept, corrected in zip(model._kept, model._corrected, strict=True):
        rho = np.exp(corrected.log_probs - kept.buffer.log_probs)
        np.testing.assert_allclose(corrected.advantages, rho * kept.buffer.advantages, rtol=1e-5)
        np.testing.assert_array_equal(corrected.returns, kept.buffer.returns)


def test_weights_in_the_surrogate_can_be_bounded():
    model = trained(3, n_reused_rollouts=2, v_trace=False, normalize_advantage=False, max_weight=1.0, target_kl=0.05)
    rho = np.concatenate(
        [now.log_probs - kept.buffer.log_probs for kept, now in zip(model._kept, model._corrected, strict=True)]
    )
    shares = [now.advantages / kept.buffer.advantages for kept, now in zip(model._kept, model._corrected, strict=True)]
    np.testing.assert_allclose(np.concatenate(shares), np.minimum(np.exp(rho), 1.0), rtol=1e-4)
    assert model.weight_records[-1].largest > 1.1  # the record is of the weights themselves


@pytest.mark.parametrize(("reuse", "n_rollouts", "n_epochs"), [(True, 2, 3), (False, 1, 6)])
def test_the_critic_takes_as_many_steps_as_for_one_rollout(reuse, n_rollouts, n_epochs, monkeypatch):
    seen, fit = [], TRPO._fit_values
    monkeypatch.setattr(TRPO, "_fit_values", lambda *given: seen.append(given[4][0]) or fit(*given))
    model = trained(3, Watched, n_reused_rollouts=1, reuse_for_critic=reuse)
    assert model.fitted_to == n_rollouts
    assert seen == [6, 6, n_epochs]


def test_original_observations_are_those_of_the_steps():
    env = envs()
    trained(2, TRPO, env=env)
    env.training = False  # the statistics stay
    model = trained(3, env=env, n_reused_rollouts=1, renormalize=True)
    for kept, corrected in zip(model._kept, model._corrected, strict=True):
        np.testing.assert_array_equal(
            RolloutBuffer.swap_and_flatten(env.normalize_obs(kept.originals[:-1])), kept.buffer.observations
        )
        np.testing.assert_array_equal(env.normalize_obs(kept.originals[-1]), kept.last_observations)
        np.testing.assert_array_equal(corrected.observations, kept.buffer.observations)
    assert model.weight_records[0].drift == 0.0


def test_observations_are_normalized_again():
    model = trained(3, n_reused_rollouts=1, renormalize=True)
    for kept, corrected in zip(model._kept, model._corrected, strict=True):
        now = RolloutBuffer.swap_and_flatten(model.env.normalize_obs(kept.originals[:-1]))
        np.testing.assert_array_equal(corrected.observations, now)
        assert not np.array_equal(now, kept.buffer.observations)


def test_only_what_is_normalized_can_be_again():
    with pytest.raises(ValueError, match="VecNormalize"):
        ReusingTRPO("MlpPolicy", envs(norm_obs=False), renormalize=True, **SETTINGS)


def test_radius_of_several_rollouts():
    assert [radius_factor(n) for n in (1, 3, 7)] == [1.0, 1 / 4, 1 / 16]
