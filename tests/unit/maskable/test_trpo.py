"""MaskableTRPO against what its environments remember, and a dense float64 policy over the allowed options alone."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from helpers.envs import VECTOR, RandomEnv
from helpers.masked import (
    SPACES,
    MaskedEnv,
    are_allowed,
    collected,
    dense_entropy,
    dense_kl,
    dense_log_prob,
    dense_policy,
    each_loop,
    each_space,
    history,
    model_of,
    oracle_inputs,
    random_masks,
    several,
    theta_of,
)
from helpers.recurrent_tools import options_of
from helpers.rollouts import ARRAYS, EACH_STEP, Intervening, assert_same_buffers
from sb3_contrib.common.envs import InvalidActionEnvDiscrete, InvalidActionEnvMultiBinary, InvalidActionEnvMultiDiscrete
from sb3_contrib.common.maskable.evaluation import evaluate_policy
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_trpo import TRPO
from sb3_trpo.maskable import MaskableTRPO

ROUNDING = 2e-6

# Collection, against what the environments remember.


def act(callback: BaseCallback) -> None:
    """Have the policy act in a callback, by each of its methods."""
    model, observations = callback.model, callback.locals["new_obs"]
    with th.no_grad():
        model.policy(th.as_tensor(observations))
    model.predict(observations)
    model.predict(observations[0])
    model.policy.get_distribution(th.as_tensor(observations))


@pytest.mark.filterwarnings(r"ignore:predict\(\) was given no action_masks:UserWarning")  # on purpose
@each_loop
@each_space
@pytest.mark.parametrize("n_envs", [1, 3])
@pytest.mark.parametrize("acts", [False, True], ids=["looks on", "acts too"])
def test_the_buffer_holds_the_masks_and_actions_that_the_environments_saw(space, loop, n_envs, acts):
    env, seen = several(n_envs, space), []

    def look(callback: BaseCallback) -> None:
        seen.append(callback.locals["action_masks"].copy())
        if acts:
            act(callback)

    model = model_of(env, loop)
    buffer = collected(model, Intervening(look, EACH_STEP))
    masks, actions = history(env)
    assert np.array_equal(buffer.action_masks, masks)
    assert np.array_equal(buffer.actions, actions)
    assert np.array_equal(seen, masks)
    assert are_allowed(masks.reshape(-1, masks.shape[2]), actions, options_of(space)).all()
    assert len(np.unique(masks, axis=0)) > 10
    policy = dense_policy(theta_of(model), *oracle_inputs(model))
    log_probs = dense_log_prob(policy, th.as_tensor(actions), options_of(space))
    assert np.allclose(buffer.log_probs.flatten(), log_probs, atol=1e-5)
    assert buffer.log_probs.min() < -1.0


@pytest.mark.filterwarnings(r"ignore:predict\(\) was given no action_masks:UserWarning")  # on purpose
@each_loop
@each_space
def test_the_update_reads_the_masks_that_the_environments_saw(space, loop):
    env = several(3, space)
    model = model_of(env, loop)
    for n_rollouts in (1, 2):
        model.learn(96, Intervening(act, EACH_STEP), reset_num_timesteps=False)
        masks, actions = (each[-32:].swapaxes(0, 1).reshape(96, -1) for each in history(env))  # env after env
        assert np.array_equal(model.rollout_buffer.action_masks, masks)
        assert np.array_equal(model.rollout_buffer.actions, actions)
        assert len(history(env)[0]) == 32 * n_rollouts


@each_loop
@pytest.mark.parametrize("method", ["_on_rollout_start", "_on_step", "_on_rollout_end"])
@pytest.mark.parametrize("rows", [slice(0, 1), slice(None)], ids=["one", "all"])
def test_callbacks_may_call_the_policy_at_any_time(method, rows, loop):
    env, callback = several(3, SPACES["choices"]), Intervening(lambda _: None)

    def act_on_some() -> bool:
        with th.no_grad():
            callback.model.policy(th.as_tensor(callback.model._last_obs[rows]))
        return True

    setattr(callback, method, act_on_some)
    buffer = collected(model_of(env, loop), callback)
    masks, actions = history(env)
    assert np.array_equal(buffer.action_masks, masks)
    assert np.array_equal(buffer.actions, actions)


@each_loop
def test_callbacks_may_give_the_policy_masks_of_their_own(loop):
    env, masks = several(2, SPACES["choice"]), th.tensor([[0.0, 0.0, 1.0, 0.0, 0.0]] * 2)
    actions = []

    def act_masked(variables: dict[str, Any], _: Any) -> bool:
        policy, observations = variables["self"].policy, th.as_tensor(variables["new_obs"])
        actions.extend([*policy(observations, False, masks)[0], *policy(observations, action_masks=masks)[0]])
        return True

    model = model_of(env, loop).learn(64, act_masked)
    assert len(actions) == 4 * 32
    assert set(map(int, actions)) == {2}
    assert np.array_equal(model.rollout_buffer.action_masks, history(env)[0].swapaxes(0, 1).reshape(64, -1))


@each_loop
def test_a_copy_that_a_callback_makes_of_the_policy_knows_no_environment(loop):
    copies = []
    model = model_of(several(2, SPACES["choice"]), loop)
    model.learn(64, lambda variables, _: copies.append(copy.deepcopy(variables["self"].policy)) or True)
    copies[0](th.zeros((5, 3)))


@each_space
@pytest.mark.parametrize("n_envs", [1, 3])
def test_both_loops_leave_the_same_buffer(space, n_envs):
    buffers, states = [], []
    for loop in ("ours", "SB3's"):
        buffers.append(collected(model_of(several(n_envs, space), loop)))
        states.append(th.get_rng_state())
    assert th.equal(*states)
    assert_same_buffers(*buffers, (*ARRAYS, "action_masks"))
    assert 2 < buffers[0].episode_starts.sum() < buffers[0].episode_starts.size


class TableEnv(gym.Env):
    """Quick: observations and masks from tables; the first option, the likeliest in the test, is always forbidden."""

    def __init__(self, action_space: spaces.Space) -> None:
        self.observation_space, self.action_space = VECTOR, action_space
        generator = np.random.default_rng(0)
        self.observations = generator.uniform(-1.0, 1.0, (997, 3)).astype(np.float32)
        self.masks = random_masks(generator, options_of(action_space), 997)
        self.masks[:, 0], self.masks[:, 1] = False, True
        self.history: list[tuple[np.ndarray, np.ndarray]] = []

    @property
    def row(self) -> int:
        return len(self.history) % 997

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        return self.observations[self.row], {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.history.append((self.masks[self.row], np.ravel(action)))
        return self.observations[self.row], 0.0, False, False, {}

    def action_masks(self) -> np.ndarray:
        return self.masks[self.row]


@pytest.mark.parametrize(("loop", "n_draws"), [("ours", 10**5), ("SB3's", 4000)], ids=["ours", "SB3's"])
@each_space
def test_masked_actions_are_never_taken(space, loop, n_draws):
    env = DummyVecEnv([partial(TableEnv, space)] * 8)
    model = model_of(env, loop, n_steps=n_draws // (8 * len(options_of(space))) + 1)
    with th.no_grad():
        model.policy.action_net.bias[0] = 20.0
    collected(model)
    masks, actions = history(env)
    assert are_allowed(masks.reshape(-1, masks.shape[2]), actions, options_of(space)).all()
    assert len(np.unique(actions)) == max(options_of(space)) - (len(options_of(space)) == 1)


# Updates.


@pytest.mark.parametrize("name", ["choice", "choices"])
def test_with_everything_allowed_it_is_trpo(name):
    """To 1e-5 after three updates: masking normalizes the log-probabilities once more, which rounds."""
    models = []
    for kind in (TRPO, MaskableTRPO):
        model = model_of(several(2, SPACES[name], share=1.0), kind=kind, n_critic_updates=2)
        models.append((theta_of(model), model.learn(3 * 64)))
    (start, trpo), (_, maskable) = models
    for one, other in zip(trpo.policy.parameters(), maskable.policy.parameters(), strict=True):
        th.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    assert (theta_of(trpo) - start).abs().max() > 0.01
    for key in ("train/kl_divergence_loss", "train/entropy", "train/policy_objective"):
        assert maskable.logger.name_to_value[key] == pytest.approx(trpo.logger.name_to_value[key], rel=1e-3, abs=1e-6)


def kl_since(model: TRPO, old: th.Tensor, every: int = 1) -> float:
    observations, masks, sizes = oracle_inputs(model)
    policies = [dense_policy(theta, observations[::every], masks[::every], sizes) for theta in (old, theta_of(model))]
    return dense_kl(*policies).item()


def entropy_of(model: TRPO, theta: th.Tensor) -> float:
    return dense_entropy(dense_policy(theta, *oracle_inputs(model))).item()


@each_loop
@each_space
@pytest.mark.parametrize("changes", [{}, {"target_kl": 0.1, "ent_coef": 0.1}], ids=["", "wide"])
def test_every_step_stays_within_the_trust_region_over_allowed_options(space, loop, changes):
    model = model_of(several(2, space), loop, **changes)
    n_accepted = 0
    for _ in range(3):
        old = theta_of(model)
        model.learn(2 * model.n_steps, reset_num_timesteps=False)
        log, kl = model.logger.name_to_value, kl_since(model, old)
        assert log["train/entropy"] == pytest.approx(entropy_of(model, old), abs=1e-5)
        n_accepted += model.policy_outcome.value == "accepted"
        assert kl <= model.target_kl + ROUNDING
        assert kl == pytest.approx(log["train/kl_divergence_loss"] * (model.policy_outcome.value == "accepted"), abs=ROUNDING)
    assert n_accepted > 1


@each_loop
@each_space
def test_chunks_change_nothing_beyond_rounding(space, loop):
    whole, *others = (model_of(several(3, space), loop, chunk_size=size).learn(96) for size in (None, 1, 20))
    for other in others:
        for one, another in zip(whole.policy.parameters(), other.policy.parameters(), strict=True):
            th.testing.assert_close(one, another, rtol=1e-3, atol=1e-4)
        assert np.array_equal(whole.rollout_buffer.action_masks, other.rollout_buffer.action_masks)


@each_space
def test_every_second_transition_may_make_the_update(space):
    model = model_of(several(2, space), sub_sampling_factor=2)
    old = theta_of(model)
    model.learn(64)
    assert model.policy_outcome.value == "accepted"
    assert kl_since(model, old, every=2) == pytest.approx(model.logger.name_to_value["train/kl_divergence_loss"], abs=ROUNDING)
    assert kl_since(model, old, every=2) <= 0.01 + ROUNDING
    assert kl_since(model, old) != pytest.approx(kl_since(model, old, every=2), rel=1e-3)


@each_space
def test_every_second_state_may_make_the_fisher_matrix(space):
    models = []
    for k in (1, 2):
        models.append(model := model_of(several(2, space), fisher_subsampling=k))
        old = theta_of(model)
        model.learn(64)
        assert model.policy_outcome.value == "accepted"
        assert 0.0 < kl_since(model, old) <= 0.01 + ROUNDING
    exact, subsampled = models
    assert not th.allclose(theta_of(exact), theta_of(subsampled), atol=1e-5)
    assert exact.logger.name_to_value["train/gradient_norm"] == subsampled.logger.name_to_value["train/gradient_norm"]


# Errors.


def emptied(space: spaces.Space, choice: int | None) -> np.ndarray:
    """Give a mask that allows no option of one choice, or of any."""
    rows = [np.full(size, choice not in (None, index)) for index, size in enumerate(options_of(space))]
    return np.concatenate(rows)


def env_with_fault(fault: Any, step: int, space: spaces.Space) -> DummyVecEnv:
    """Give three environments, of which the one in the middle gives this mask at this step."""
    faults = ({}, {step: fault}, {})
    return DummyVecEnv([partial(MaskedEnv, space, faults=each) for each in faults])


def assert_refused(model: TRPO, match: str) -> None:
    before = {name: tensor.clone() for name, tensor in model.policy.state_dict().items()}
    with pytest.raises(ValueError, match=match):
        model.learn(96, reset_num_timesteps=False)
    for name, tensor in model.policy.state_dict().items():
        assert th.equal(tensor, before[name])
    assert not model.policy._forward_pre_hooks


@each_loop
@pytest.mark.parametrize("step", [0, 5])
@pytest.mark.parametrize(("name", "choice"), [("choice", None), ("choices", None), ("choices", 2), ("bits", 1)], ids=str)
def test_a_mask_that_allows_nothing_is_refused(name, choice, step, loop):
    model = model_of(env_with_fault(emptied(SPACES[name], choice), step, SPACES[name]), loop)
    assert_refused(model, rf"environment 1 at step {step} of the rollout .*choice {choice or 0} of")


@each_loop
def test_a_later_rollout_is_refused_alike(loop):
    space = SPACES["choices"]
    model = model_of(env_with_fault(emptied(space, 1), 32 + 7, space), loop)
    model.learn(96)
    assert_refused(model, "environment 1 at step 7 of the rollout")
    assert model._n_updates == 1


@each_loop
@each_space
@pytest.mark.parametrize("change", [-1, 1, None], ids=["short", "long", "scalar"])
def test_a_mask_of_the_wrong_size_is_refused(space, loop, change):
    fault = np.ones(()) if change is None else np.ones(sum(options_of(space)) + change)
    model = model_of(env_with_fault(fault, 4, space), loop)
    assert_refused(model, rf"environment 1 at step 4 of the rollout has .* entries.*needs {sum(options_of(space))} flags")


@each_loop
def test_an_environment_without_masks_is_refused(loop):
    assert_refused(model_of(RandomEnv(), loop), r"no method action_masks\(\).*ActionMasker.*sb3_trpo.TRPO")


def test_box_actions_are_refused():
    with pytest.raises((AssertionError, ValueError), match="Box"):
        MaskableTRPO("MlpPolicy", RandomEnv(action_space=VECTOR))


@each_space
def test_predict_refuses_masks_that_allow_nothing_or_have_the_wrong_size(space):
    model, n_options = model_of(several(2, space)), sum(options_of(space))
    one = np.zeros(3, np.float32)
    for masks in (np.zeros(n_options), emptied(space, 0)):
        with pytest.raises(ValueError, match=r"environment 0 .*allows no option of choice 0"):
            model.predict(one, action_masks=masks)
    with pytest.raises(ValueError, match=r"environment 1 .*allows no option"):
        model.predict(np.stack([one, one]), action_masks=np.stack([np.ones(n_options), np.zeros(n_options)]))
    for masks in (np.ones(n_options + 1), np.ones((1, n_options - 1))):
        with pytest.raises(ValueError, match=f"needs {n_options} flags"):
            model.predict(one, action_masks=masks)


# Learning.

LEARNABLE = {
    "choice": partial(InvalidActionEnvDiscrete, dim=20, n_invalid_actions=10),
    "choices": partial(InvalidActionEnvMultiDiscrete, dims=[5, 5], n_invalid_actions=3),
    "bits": partial(InvalidActionEnvMultiBinary, dims=6, n_invalid_actions=3),
}


@pytest.mark.parametrize("make_env", LEARNABLE.values(), ids=LEARNABLE)
def test_it_learns(make_env):
    model = MaskableTRPO("MlpPolicy", make_env(), n_steps=512, gamma=0.4, seed=1, device="cpu")
    model.learn(4096)
    mean, _ = evaluate_policy(model, model.env, n_eval_episodes=10)
    assert mean > 95.0


def test_predicting_without_masks_warns():
    model = MaskableTRPO("MlpPolicy", InvalidActionEnvDiscrete(dim=3, n_invalid_actions=1), n_steps=8, batch_size=8)
    with pytest.warns(UserWarning, match="no action_masks"):
        model.predict(0)
