"""Contract: policies with memory, alone and with masks, from outside."""

from functools import partial

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from helpers.contract_tools import moved_since, parameters, same_parameters
from helpers.envs import BOX_ACTION, DICT, IMAGE, RandomEnv
from helpers.recurrent_tools import ALGORITHMS, CHOICES, CRITICS, RestlessEnv, options_of, small_model, vec_env
from helpers.runs import outcome, run_until_done, with_log
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from sb3_contrib.common.recurrent.buffers import RecurrentRolloutBuffer
from sb3_contrib.common.recurrent.policies import (
    RecurrentActorCriticCnnPolicy,
    RecurrentActorCriticPolicy,
    RecurrentMultiInputActorCriticPolicy,
)
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import SubprocVecEnv, VecNormalize

from sb3_trpo import TRPO
from sb3_trpo.checkpoint import ResumableCheckpoint
from sb3_trpo.recurrent import MaskableRecurrentEvalCallback, MaskableRecurrentTRPO, MlpLstmPolicy, RecurrentTRPO

FEW = {"features_extractor_kwargs": {"features_dim": 6}}
FEW_OF_DICT = {"features_extractor_kwargs": {"cnn_output_dim": 4}}
RUNS = {
    "Box": (RecurrentTRPO, "MlpLstmPolicy", {"action_space": BOX_ACTION}, {}),
    "gSDE": (RecurrentTRPO, "MlpLstmPolicy", {"action_space": BOX_ACTION}, {"use_sde": True, "sde_sample_freq": 4}),
    "Beta": (RecurrentTRPO, "MlpLstmPolicy", {"action_space": BOX_ACTION}, {"policy_kwargs": {"action_distribution": "beta"}}),
    **{name: (RecurrentTRPO, "MlpLstmPolicy", {"action_space": space}, {}) for name, space in CHOICES.items()},
    "Dict": (RecurrentTRPO, "MultiInputLstmPolicy", {"observation_space": DICT}, {"policy_kwargs": FEW_OF_DICT}),
    "image": (RecurrentTRPO, "CnnLstmPolicy", {"observation_space": IMAGE}, {"policy_kwargs": FEW}),
    "sb3-contrib's": (RecurrentTRPO, RecurrentActorCriticPolicy, {}, {}),
    "sb3-contrib's for images": (
        RecurrentTRPO, RecurrentActorCriticCnnPolicy, {"observation_space": IMAGE}, {"policy_kwargs": FEW}),
    "sb3-contrib's for Dict": (
        RecurrentTRPO, RecurrentMultiInputActorCriticPolicy, {"observation_space": DICT}, {"policy_kwargs": FEW_OF_DICT}),
    "shared LSTM": (RecurrentTRPO, "MlpLstmPolicy", {}, {"policy_kwargs": CRITICS["shared LSTM"]}),
    "no critic's LSTM": (RecurrentTRPO, "MlpLstmPolicy", {}, {"policy_kwargs": CRITICS["no LSTM"]}),
    "schedules": (RecurrentTRPO, "MlpLstmPolicy", {}, {"target_kl": lambda progress: 0.01 + progress}),
    **{f"masked {name}": (MaskableRecurrentTRPO, "MlpLstmPolicy", {"action_space": CHOICES[name]}, {}) for name in CHOICES},
    "masked Dict": (
        MaskableRecurrentTRPO, "MultiInputLstmPolicy", {"observation_space": DICT}, {"policy_kwargs": FEW_OF_DICT}),
    "masked image": (MaskableRecurrentTRPO, "CnnLstmPolicy", {"observation_space": IMAGE}, {"policy_kwargs": FEW}),
}  # fmt: skip


def made(name):
    algorithm, policy, of_env, options = RUNS[name]
    return small_model(algorithm, vec_env(**of_env), policy, **options)


def log_of(model):
    return dict(model.logger.name_to_value)


@pytest.mark.filterwarnings(r"ignore:predict\(\) was given no action_masks:UserWarning")  # on purpose
@pytest.mark.parametrize("name", RUNS)
def test_policies_are_learnt_saved_and_loaded_with_their_memory(name, tmp_path):
    model = made(name)
    before = parameters(model.policy)
    model.learn(24)
    assert model.policy_outcome.value == "accepted"
    assert moved_since(before, model.policy) == {*before}
    model.save(tmp_path / "model")
    loaded = type(model).load(tmp_path / "model", env=vec_env(**RUNS[name][2]))
    assert type(loaded.policy) is type(model.policy)
    assert same_parameters(loaded.policy, model.policy)
    one, other = trajectory(model), trajectory(loaded)
    assert all(map(np.array_equal, one, other))
    loaded.learn(24, reset_num_timesteps=False)
    assert loaded.num_timesteps == 48


def trajectory(model, **options):
    """Predict through an episode and a half, carrying the memory along; return actions and memories."""
    space = model.observation_space
    space.seed(0)
    state, seen, starts = None, [], np.ones(1, bool)
    for step in range(9):
        action, state = model.predict(space.sample(), state=state, episode_start=starts, deterministic=True, **options)
        starts = np.array([step == 5])
        seen += [action, *(part.copy() for part in state)]
    return seen


@pytest.mark.filterwarnings(r"ignore:predict\(\) was given no action_masks:UserWarning")  # on purpose
@pytest.mark.parametrize("algorithm", ALGORITHMS.values(), ids=ALGORITHMS)
def test_memory_is_carried_along_and_reset_at_an_episodes_start(algorithm):
    model = small_model(algorithm, policy_kwargs={"n_lstm_layers": 2})
    observation = np.full((2, 3), 0.5, np.float32)
    _, first = model.predict(observation)
    assert [part.shape for part in first] == [(2, 2, 3)] * 2
    _, second = model.predict(observation, state=first, episode_start=np.array([False, True]))
    assert not np.allclose(second[0][:, 0], first[0][:, 0])
    assert np.allclose(second[0][:, 1], first[0][:, 1])


OTHER_LSTMS = {
    "two layers": {"n_lstm_layers": 2, "lstm_hidden_size": 5},
    "shared": CRITICS["shared LSTM"],
    "none for the critic": CRITICS["no LSTM"],
    "keywords": {"lstm_kwargs": {"bias": False}},
}


@pytest.mark.parametrize("algorithm", ALGORITHMS.values(), ids=ALGORITHMS)
@pytest.mark.parametrize("kwargs", OTHER_LSTMS.values(), ids=OTHER_LSTMS)
def test_a_policy_alone_survives_saving(kwargs, algorithm, tmp_path):
    model = small_model(algorithm, policy_kwargs=kwargs).learn(24)
    model.policy.save(tmp_path / "policy")
    loaded = type(model.policy).load(tmp_path / "policy")
    assert same_parameters(loaded, model.policy)
    for name in ("shared_lstm", "enable_critic_lstm", "lstm_kwargs", "share_features_extractor", "lstm_hidden_state_shape"):
        assert getattr(loaded, name) == getattr(model.policy, name)
    observation = np.ones((4, 3), np.float32)
    assert np.array_equal(*(policy.predict(observation, deterministic=True)[0] for policy in (loaded, model.policy)))


def test_extractors_are_separate_unless_the_lstm_is_shared():
    for name, kwargs in CRITICS.items():
        assert small_model(policy_kwargs=kwargs).policy.share_features_extractor == (name == "shared LSTM")
    assert small_model(policy_kwargs={"share_features_extractor": True}).policy.share_features_extractor


class OtherBuffer(RecurrentRolloutBuffer):
    pass


REFUSED = {
    "SB3's policy": (RecurrentTRPO, {"policy": ActorCriticPolicy}, "ActorCriticPolicy.*RecurrentActorCriticPolicy"),
    "a policy without masks": (MaskableRecurrentTRPO, {"policy": MlpLstmPolicy}, "MlpLstmPolicy.*MaskableRecurrent"),
    "a policy without memory": (MaskableRecurrentTRPO, {"policy": MaskableActorCriticPolicy}, "MaskableActor.*Recurrent"),
    "an unknown alias": (RecurrentTRPO, {"policy": "MlpPolicy"}, "MlpPolicy"),
    "SB3's buffer": (RecurrentTRPO, {"rollout_buffer_class": RolloutBuffer}, "class is RolloutBuffer.*Recurrent"),
    "a buffer without masks": (MaskableRecurrentTRPO, {"rollout_buffer_class": OtherBuffer}, "OtherBuffer.*MaskableRecurrent"),
}  # fmt: skip


@pytest.mark.parametrize(("algorithm", "options", "message"), REFUSED.values(), ids=REFUSED)
def test_what_does_not_fit_is_refused_by_name(algorithm, options, message):
    with pytest.raises(ValueError, match=message):
        small_model(algorithm, **options)


def test_a_custom_buffer_is_used():
    model = small_model(rollout_buffer_class=OtherBuffer, rollout_buffer_kwargs={"gae_lambda": 0.5}).learn(24)
    assert type(model.rollout_buffer) is OtherBuffer
    assert model.rollout_buffer.gae_lambda == 0.5


def test_continuous_actions_cannot_be_masked():
    with pytest.raises(AssertionError, match="Box"):
        small_model(MaskableRecurrentTRPO, vec_env(action_space=BOX_ACTION))


@pytest.mark.parametrize("algorithm", ALGORITHMS.values(), ids=ALGORITHMS)
def test_parameters_go_out_and_in_and_the_seed_decides(algorithm):
    one, same, other = (small_model(algorithm, seed=seed).learn(48) for seed in (3, 3, 4))
    assert same_parameters(one.policy, same.policy)
    assert not same_parameters(one.policy, other.policy)
    other.set_parameters(one.get_parameters())
    assert same_parameters(one.policy, other.policy)


@pytest.mark.parametrize("algorithm", ALGORITHMS.values(), ids=ALGORITHMS)
def test_a_callback_may_stop_in_mid_rollout(algorithm):
    model, untrained = small_model(algorithm), small_model(algorithm)
    seen = []
    model.learn(1000, callback=lambda local, _: seen.append({*local}) or len(seen) < 7)
    assert model.num_timesteps == 14
    assert same_parameters(model.policy, untrained.policy)
    assert {"actions", "obs_tensor", "lstm_states", "dones", "infos"} <= seen[-1]
    assert ("action_masks" in seen[-1]) == (algorithm is MaskableRecurrentTRPO)
    assert model.learn(24, reset_num_timesteps=False).num_timesteps == 14 + 24
    assert model.policy_outcome.value == "accepted"


def test_the_log_has_the_keys_of_trpo(tmp_path):
    def keys(model):
        with_log(model, tmp_path).learn(48)
        return {*model.logger.name_to_value}

    settings = {"n_steps": 12, "batch_size": 8, "n_critic_updates": 1, "seed": 0}
    usual = keys(TRPO("MlpPolicy", vec_env(), **settings))
    assert {"train/explained_variance", "train/value_loss"} < usual
    for algorithm in ALGORITHMS.values():
        assert keys(small_model(algorithm)) == usual


def test_time_limits_are_bootstrapped():
    model = small_model(env=vec_env(reward=0.0), n_steps=60).learn(120)
    rewards, starts = model.rollout_buffer.rewards, model.rollout_buffer.episode_starts
    ended = np.roll(starts.reshape(2, 60).T, -1, axis=0)[:-1] > 0
    truncated = rewards[:-1] != 0.0
    assert 0 < (truncated & ended).sum() < ended.sum()
    assert not (truncated & ~ended).any()


class Poisoned(RestlessEnv):
    """Gives NaN at its fifth step."""

    def __init__(self, where):
        super().__init__()
        self.where, self.n = where, 0

    def step(self, action):
        observation, reward, *rest = super().step(action)
        self.n += 1
        if self.n == 5:
            observation, reward = (observation * np.nan, reward) if self.where == "observations" else (observation, np.nan)
        return observation, reward, *rest


@pytest.mark.parametrize("algorithm", ALGORITHMS.values(), ids=ALGORITHMS)
@pytest.mark.parametrize("where", ["rewards", "observations"])
def test_nan_is_refused_with_the_policy_unchanged(where, algorithm):
    model = small_model(algorithm, Poisoned(where))
    old = parameters(model.policy)
    with pytest.raises(ValueError, match=f"non-finite {where}.* environment 0 at step {5 if where == 'observations' else 4}"):
        model.learn(24)
    assert not moved_since(old, model.policy)


@pytest.mark.parametrize("algorithm", ALGORITHMS.values(), ids=ALGORITHMS)
def test_normalised_environments_in_workers_are_learnt_from(algorithm):
    env = VecNormalize(vec_env(vec_env_cls=SubprocVecEnv, vec_env_kwargs={"start_method": "fork"}))
    try:
        model = small_model(algorithm, env).learn(48)
        assert model.policy_outcome.value == "accepted"
        assert env.obs_rms.count > 48
    finally:
        env.close()


@pytest.mark.parametrize("algorithm", ALGORITHMS.values(), ids=ALGORITHMS)
def test_evaluation_keeps_the_best_model(algorithm, tmp_path):
    kind = MaskableRecurrentEvalCallback if algorithm is MaskableRecurrentTRPO else EvalCallback
    env = Monitor(RestlessEnv())
    evaluation = kind(env, eval_freq=12, n_eval_episodes=2, best_model_save_path=str(tmp_path), verbose=0)
    small_model(algorithm).learn(48, callback=evaluation)
    assert evaluation.best_mean_reward > -np.inf
    assert algorithm.load(tmp_path / "best_model").num_timesteps in (24, 48)
    assert env.unwrapped.n_forbidden == 0 or algorithm is RecurrentTRPO
    if algorithm is RecurrentTRPO:
        assert len(evaluate_policy(algorithm.load(tmp_path / "best_model"), env, 2, return_episode_rewards=True)[0]) == 2


@pytest.mark.parametrize("name", CHOICES)
def test_masks_in_the_buffer_are_those_in_force_and_no_other_action_is_taken(name):
    model = small_model(MaskableRecurrentTRPO, vec_env(40, action_space=CHOICES[name]), n_steps=90, n_critic_updates=0)
    model.learn(90 * 40)  # of 10800 in all
    in_force = np.stack(model.env.get_attr("in_force"))[:, -90:].reshape(40 * 90, -1)
    assert np.array_equal(model.rollout_buffer.action_masks, in_force)
    assert 0.5 < in_force.mean() < 0.95
    assert sum(model.env.get_attr("n_forbidden")) == 0
    places = model.rollout_buffer.actions.astype(int) + np.cumsum([0, *options_of(CHOICES[name])[:-1]])
    assert np.take_along_axis(in_force, places, axis=1).all()


class Forbidding(RestlessEnv):
    def action_masks(self):
        return self.masks & (self.n_steps != 3)


class Miscounting(RestlessEnv):
    def action_masks(self):
        return np.ones(5)


def test_masks_that_allow_nothing_or_do_not_fit_are_refused_by_place():
    with pytest.raises(ValueError, match="environment 0 at step 3 of the rollout allows no option"):
        small_model(MaskableRecurrentTRPO, Forbidding(p_end=0.0)).learn(24)
    with pytest.raises(ValueError, match=r"environment 0 at step 0 .* has 5 entries"):
        small_model(MaskableRecurrentTRPO, Miscounting()).learn(24)
    with pytest.raises(ValueError, match="action_masks"):
        small_model(MaskableRecurrentTRPO, RandomEnv()).learn(24)


@pytest.mark.filterwarnings(r"ignore:predict\(\) was given no action_masks:UserWarning")  # on purpose
def test_predictions_obey_masks_and_carry_memory_along():
    model = small_model(MaskableRecurrentTRPO)
    observations, masks = np.zeros((300, 3), np.float32), np.tile([True, False, True], (300, 1))
    actions, state = model.predict(observations, action_masks=masks)
    assert {*actions} == {0, 2}
    assert {*model.predict(observations, state, np.zeros(300, bool), action_masks=~masks)[0]} == {1}
    assert {*model.predict(observations)[0]} == {0, 1, 2}
    assert model.predict(observations[0], action_masks=np.array([0, 0, 1]))[0] == 2
    with pytest.raises(ValueError, match="predict"):
        model.predict(observations[0], action_masks=np.zeros(3))


RESUMED = {
    "RecurrentTRPO": (RecurrentTRPO, {"action_space": BOX_ACTION}, {"use_sde": True}),
    "MaskableRecurrentTRPO": (MaskableRecurrentTRPO, {"action_space": spaces.MultiDiscrete([2, 3])}, {}),
}


@pytest.mark.filterwarnings(r"ignore:predict\(\) was given no action_masks:UserWarning")  # on purpose
@pytest.mark.parametrize(("algorithm", "of_env", "options"), RESUMED.values(), ids=RESUMED)
def test_a_run_that_crashes_ends_like_one_that_does_not(algorithm, of_env, options, tmp_path):
    def train(folder, crash):
        env = VecNormalize(vec_env(3, p_end=0.05, **of_env))
        model = with_log(small_model(algorithm, env, **options), folder / "log")
        model.learn(36 * 6, callback=[ResumableCheckpoint(folder / "run", every=1, verbose=0), crash])
        return outcome(model, None, folder / "log")

    whole, _ = run_until_done(partial(train, tmp_path / "whole"))
    pieces, starts = run_until_done(partial(train, tmp_path / "pieces"), 50, 150)
    assert starts == 3
    assert pieces == whole
    env = VecNormalize(vec_env(3, **of_env), training=False, norm_reward=False)
    one, other = (algorithm.from_checkpoint(tmp_path / run / "run", env) for run in ("whole", "pieces"))
    assert same_parameters(one.policy, other.policy)
    assert one.policy.lstm_hidden_state_shape == (1, 1, 3)
    assert one.num_timesteps == 36 * 6
    assert all(map(np.array_equal, trajectory(one), trajectory(other)))
    assert th.equal(*(model.policy.value_net.weight for model in (one, other)))
