"""Contract: MaskableTRPO with sb3-contrib's tools, whatever its version; no action is taken that a mask forbids."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from helpers.contract_tools import ROUNDING, parameters, same_parameters
from helpers.envs import IMAGE, VECTOR, RandomEnv
from helpers.runs import CrashAt, outcome, run_until_done, with_log
from sb3_contrib.common.maskable.callbacks import MaskableEvalCallback
from sb3_contrib.common.maskable.evaluation import evaluate_policy
from sb3_contrib.common.maskable.policies import (
    MaskableActorCriticCnnPolicy,
    MaskableActorCriticPolicy,
    MaskableMultiInputActorCriticPolicy,
)
from sb3_contrib.common.maskable.utils import get_action_masks
from sb3_contrib.common.wrappers import ActionMasker
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecNormalize

from sb3_trpo.checkpoint import ResumableCheckpoint
from sb3_trpo.maskable import CnnPolicy, MaskableTRPO, MlpPolicy, MultiInputPolicy

PAIR = spaces.Dict(vector=VECTOR, choice=spaces.Discrete(3))
ACTIONS = {"choice": spaces.Discrete(4), "choices": spaces.MultiDiscrete([2, 3]), "bits": spaces.MultiBinary(3)}
SMALL = {"n_steps": 32, "batch_size": 32, "n_critic_updates": 2, "seed": 0, "policy_kwargs": {"net_arch": [4]}}
FEW_FEATURES = {"net_arch": [4], "features_extractor_kwargs": {"features_dim": 4}}
POLICIES = {
    "MlpPolicy": (VECTOR, MlpPolicy, MaskableActorCriticPolicy),
    "CnnPolicy": (IMAGE, CnnPolicy, MaskableActorCriticCnnPolicy),
    "MultiInputPolicy": (PAIR, MultiInputPolicy, MaskableMultiInputActorCriticPolicy),
}


class StrictEnv(RandomEnv):
    """Forbids one option of every choice, a different one at each step, sometimes none; raises an error if it is taken."""

    def forbidden(self) -> np.ndarray:
        return self.n_steps % (self.sizes() + 1)

    def sizes(self) -> np.ndarray:
        space = self.action_space
        if isinstance(space, spaces.MultiBinary):
            return np.full(int(space.n), 2)
        return np.atleast_1d(space.n if isinstance(space, spaces.Discrete) else space.nvec)

    def action_masks(self) -> np.ndarray:
        pairs = zip(self.sizes(), self.forbidden(), strict=True)
        return np.concatenate([np.arange(size) != option for size, option in pairs])

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if (np.ravel(action) == self.forbidden()).any():
            raise AssertionError(f"{action} is forbidden at step {self.n_steps}")
        return super().step(action)


def strict(name: str = "choice", observation_space: spaces.Space = VECTOR) -> StrictEnv:
    return StrictEnv(observation_space, ACTIONS[name])


def model_of(env: Any, policy: Any = "MlpPolicy", **changes: Any) -> MaskableTRPO:
    return MaskableTRPO(policy, env, **SMALL | changes)


def settings_for(name: str) -> dict[str, Any]:
    return {"policy_kwargs": FEW_FEATURES if name == "CnnPolicy" else {"net_arch": [4]}}


def moved(model: MaskableTRPO, old: dict[str, th.Tensor]) -> bool:
    return not th.equal(model.policy.action_net.weight, old["action_net.weight"])


@pytest.mark.parametrize("name", ACTIONS)
def test_it_learns_and_predicts_within_the_masks(name):
    model = model_of(make_vec_env(partial(strict, name), 3, seed=0))
    old = parameters(model.policy)
    model.learn(3 * 32 * 3)
    assert model.num_timesteps == 3 * 32 * 3
    assert moved(model, old)
    for deterministic in (False, True):
        evaluate_policy(model, Monitor(strict(name)), n_eval_episodes=5, deterministic=deterministic)


@pytest.mark.parametrize("name", POLICIES)
def test_policies_may_be_named_or_given_and_sb3_contribs_own_too(name):
    observation_space, ours, theirs = POLICIES[name]
    for policy in (name, ours, theirs):
        model = model_of(strict("choices", observation_space), policy, **settings_for(name))
        old = parameters(model.policy)
        model.learn(64)
        assert type(model.policy) is (theirs if policy is theirs else ours)
        assert moved(model, old)
        evaluate_policy(model, Monitor(strict("choices", observation_space)), n_eval_episodes=2)


@pytest.mark.parametrize("name", POLICIES)
def test_a_loaded_model_predicts_and_goes_on_as_the_saved_one(name, tmp_path):
    env = strict("choices", POLICIES[name][0])
    model = model_of(env, name, **settings_for(name)).learn(32)
    model.save(tmp_path / "model")
    loaded = MaskableTRPO.load(tmp_path / "model", env=model.get_env())
    assert same_parameters(loaded.policy, model.policy)
    observation, _ = env.reset(seed=1)
    masks = get_action_masks(env)
    choices = [each.predict(observation, deterministic=True, action_masks=masks)[0] for each in (model, loaded)]
    assert np.array_equal(*choices)
    for each in (model, loaded):
        each._last_obs = None
        each.set_random_seed(7)
        each.learn(64, reset_num_timesteps=False)
    assert same_parameters(loaded.policy, model.policy)


@pytest.mark.filterwarnings(r"ignore:predict\(\) was given no action_masks:UserWarning")  # on purpose
@pytest.mark.parametrize("name", ACTIONS)
def test_predict_obeys_one_mask_or_one_for_each_environment(name):
    model, env = model_of(strict(name)), DummyVecEnv([partial(strict, name)] * 4)
    observations, mask = env.reset(), get_action_masks(strict(name))
    several = model.predict(observations, action_masks=get_action_masks(env))[0]
    assert several.shape == (4, *ACTIONS[name].shape)
    for _ in range(20):
        one, _ = model.predict(observations[0], action_masks=mask)
        assert np.shape(one) == ACTIONS[name].shape
        assert (np.ravel(one) != 0).all()
    anything = [model.predict(observations[0])[0] for _ in range(100)]
    assert (np.array(anything) == 0).any()


def free(env: Any) -> np.ndarray:
    return np.array([True, True, False])


def test_masks_may_come_from_a_wrapper():
    env = Monitor(ActionMasker(RandomEnv(action_space=spaces.Discrete(3)), free))
    model = model_of(env).learn(64)
    assert set(model.rollout_buffer.actions.flatten()) == {0.0, 1.0}
    assert [*get_action_masks(model.env)[0]] == [True, True, False]


def test_masks_may_come_from_other_processes():
    env = make_vec_env(strict, 2, vec_env_cls=SubprocVecEnv, vec_env_kwargs={"start_method": "fork"})
    try:
        model = model_of(env)
        old = parameters(model.policy)
        assert moved(model.learn(64), old)
    finally:
        env.close()


def test_evaluation_masks_too_and_follows_the_normalizer(tmp_path):
    env, evaluation_env = (VecNormalize(make_vec_env(strict, n, seed=0)) for n in (2, 1))
    evaluation_env.training = False
    callback = MaskableEvalCallback(
        evaluation_env, eval_freq=20, n_eval_episodes=2, best_model_save_path=str(tmp_path), deterministic=False, verbose=0
    )
    model = model_of(env).learn(128, callback=callback)
    assert np.isfinite(callback.last_mean_reward)
    assert evaluation_env.obs_rms.count > 100  # the training environments' statistics
    best = MaskableTRPO.load(tmp_path / "best_model", env=model.get_env())
    evaluate_policy(best, evaluation_env, n_eval_episodes=2)


def test_callbacks_see_the_masks():
    seen = []
    model = model_of(make_vec_env(strict, 2))
    model.learn(64, callback=lambda variables, _: seen.append(variables["action_masks"].copy()) or True)
    assert np.shape(seen) == (32, 2, 4)
    assert {*np.sum(seen, axis=2).flat} == {3, 4}
    joined = np.swapaxes(seen, 0, 1).reshape(64, 4)
    assert np.array_equal(joined, model.rollout_buffer.action_masks)


@th.no_grad()
def log_probabilities(model: MaskableTRPO) -> list[th.Tensor]:
    """Compute the policy at all options of the last rollout in float64, with minus infinity where they are masked."""
    buffer, policy = model.rollout_buffer, model.policy
    masks = th.as_tensor(buffer.action_masks) > 0
    latent = policy.mlp_extractor.forward_actor(th.as_tensor(buffer.observations))
    logits = policy.action_net(latent).double().masked_fill(~masks, -th.inf)
    return [part.log_softmax(1) for part in logits.split([*map(int, strict_sizes(model))], dim=1)]


def strict_sizes(model: MaskableTRPO) -> np.ndarray:
    return model.env.env_method("sizes")[0]


@pytest.mark.parametrize("name", ACTIONS)
def test_every_step_stays_within_the_trust_region(name):
    model, n_accepted = model_of(strict(name), n_steps=64), 0
    for _ in range(3):
        frozen = parameters(model.policy)
        model.learn(64, reset_num_timesteps=False)
        new, log = log_probabilities(model), model.logger.name_to_value
        model.policy.load_state_dict({**model.policy.state_dict(), **frozen})
        old = log_probabilities(model)
        pairs = zip(old, new, strict=True)
        kl = sum(th.where(p.isfinite(), p.exp() * (p - q), 0.0).sum(1).mean().item() for p, q in pairs)
        assert kl <= 0.01 + ROUNDING
        assert kl == pytest.approx(log["train/kl_divergence_loss"], abs=ROUNDING)
        n_accepted += model.policy_outcome.value == "accepted"
    assert n_accepted


def test_a_single_allowed_option_is_not_an_error():
    env = ActionMasker(RandomEnv(), lambda _: np.array([False, True, False]))
    model = model_of(env)
    old = parameters(model.policy)
    model.learn(64)
    assert not moved(model, old)
    assert set(model.rollout_buffer.actions.flatten()) == {1.0}
    assert model.policy_outcome.value == "zero gradient"
    assert model.logger.name_to_value["train/entropy"] == 0.0


@pytest.mark.parametrize(
    ("mask", "message"),
    [(np.zeros(4), "environment 0 at step 0 .* allows no option"), (np.ones(5), "needs 4 flags")],
    ids=["empty", "long"],
)
def test_impossible_masks_are_refused(mask, message):
    model = model_of(ActionMasker(RandomEnv(action_space=spaces.Discrete(4)), lambda _: mask))
    with pytest.raises(ValueError, match=message):
        model.learn(32)


def test_environments_without_masks_are_refused():
    with pytest.raises(ValueError, match="action_masks"):
        model_of(RandomEnv()).learn(32)


RUNS = {name: (name, {"net_arch": [4]}) for name in ACTIONS}
RUNS["SB3's loop"] = "choices", {"net_arch": [4], "activation_fn": th.nn.Softplus}


def normalized(name: str, n_envs: int, seed: int, **settings: Any) -> VecNormalize:
    return VecNormalize(make_vec_env(partial(strict, name), n_envs, seed=seed), **settings)


def train(name: str, policy_kwargs: dict[str, Any], folder: Path, crash: CrashAt) -> dict[str, Any]:
    model = with_log(model_of(normalized(name, 2, 3), policy_kwargs=policy_kwargs), folder)
    evaluation_env = normalized(name, 1, 4, training=False)
    evaluation = MaskableEvalCallback(evaluation_env, eval_freq=30, n_eval_episodes=1, verbose=0, deterministic=False)
    model.learn(512, callback=[evaluation, ResumableCheckpoint(folder / "run", every=100, verbose=0), crash])
    return outcome(model, [evaluation], folder)


@pytest.mark.parametrize(("name", "policy_kwargs"), RUNS.values(), ids=RUNS)
def test_a_run_that_crashes_ends_like_one_that_does_not(name, policy_kwargs, tmp_path):
    whole, _ = run_until_done(partial(train, name, policy_kwargs, tmp_path / "whole"))
    pieces, starts = run_until_done(partial(train, name, policy_kwargs, tmp_path / "pieces"), 150, 333)
    assert starts == 3
    assert pieces == whole
    env = normalized(name, 1, 5, training=False)
    loaded = MaskableTRPO.from_checkpoint(tmp_path / "pieces" / "run", env)
    assert loaded.num_timesteps == 512
    for key, tensor in loaded.policy.state_dict().items():
        assert tensor.numpy().tobytes() == whole[f"policy {key}"]
    evaluate_policy(loaded, env, n_eval_episodes=2, deterministic=False)
