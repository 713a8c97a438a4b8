"""Contract: the constructor, determinism, schedules, continuing, vectorized environments."""

import inspect

import pytest
import sb3_contrib
import torch as th
from gymnasium import spaces
from helpers.contract_tools import critic_fit, one_update, parameters, policy_step, same_parameters
from helpers.envs import BOX_ACTION, RandomEnv, dict_env, image_env
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import FakeImageEnv, IdentityEnv
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecFrameStack, VecNormalize

from sb3_trpo import TRPO

SMALL = {"n_steps": 64, "batch_size": 32, "n_critic_updates": 2, "seed": 0}

RUNS = {
    "Discrete": ("MlpPolicy", RandomEnv, {}),
    "Box": ("MlpPolicy", lambda: RandomEnv(action_space=BOX_ACTION), {}),
    "gSDE": ("MlpPolicy", lambda: RandomEnv(action_space=BOX_ACTION), {"use_sde": True, "sde_sample_freq": 8}),
    "image": ("CnnPolicy", image_env, {"n_steps": 32, "batch_size": 16}),
    "Dict": ("MultiInputPolicy", dict_env, {"n_steps": 32, "batch_size": 16}),
    "several environments": ("MlpPolicy", lambda: make_vec_env(RandomEnv, n_envs=3), {}),
}
CHUNKED = ["Discrete", "Box", "gSDE", "image", "Dict"]


def logs_of(model: TRPO, total_timesteps: float, **options) -> list[dict]:
    """Train; return the log of every update."""
    logs, train = [], model.train

    def train_and_note() -> None:
        train()
        logs.append({**model.logger.name_to_value, "outcomes": (model.policy_outcome.value, model.critic_outcome.value)})

    model.train = train_and_note
    model.learn(total_timesteps, **options)
    del model.train
    return logs


def test_the_constructor_takes_what_sb3_contrib_takes():
    theirs = inspect.signature(sb3_contrib.TRPO.__init__).parameters
    ours = inspect.signature(TRPO.__init__).parameters
    assert list(ours)[: len(theirs)] == list(theirs)
    for name, parameter in theirs.items():
        assert ours[name].default == {"n_critic_updates": 20}.get(name, parameter.default), name
        assert ours[name].kind == parameter.kind, name
    new = [ours[name] for name in list(ours)[len(theirs) :]]
    assert {"fisher_subsampling", "cg_residual_tol", "ent_coef", "max_grad_norm"} < {parameter.name for parameter in new}
    assert all(parameter.kind is inspect.Parameter.KEYWORD_ONLY for parameter in new)


def test_learn_takes_what_sb3_contrib_takes():
    theirs, ours = (inspect.signature(cls.learn).parameters for cls in (sb3_contrib.TRPO, TRPO))
    assert {name: p.default for name, p in ours.items()} == {name: p.default for name, p in theirs.items()}
    assert list(ours) == list(theirs)


def test_a_registered_environment_is_made_by_name():
    assert one_update(TRPO("MlpPolicy", "CartPole-v1", **SMALL)).outcome == "accepted"


@pytest.mark.parametrize(("policy", "make_env", "options"), RUNS.values(), ids=RUNS)
def test_the_same_seed_gives_the_same_parameters(policy, make_env, options):
    def two_updates(seed: int) -> ActorCriticPolicy:
        model = TRPO(policy, make_env(), **SMALL | options | {"seed": seed})
        return model.learn(2 * model.n_steps * model.n_envs).policy

    one, same, other = map(two_updates, (7, 7, 8))
    assert same_parameters(one, same)
    assert not same_parameters(one, other)


@pytest.mark.filterwarnings("ignore:The policy gives the rollout's actions")  # it has moved since
def test_the_policy_step_does_not_use_torchs_generator():
    model = TRPO("MlpPolicy", RandomEnv(), **SMALL | {"n_critic_updates": 0}).learn(64)
    state = th.get_rng_state()
    model.train()
    assert th.equal(th.get_rng_state(), state)


@pytest.mark.parametrize("chunk_size", [1, 7, 1000])
@pytest.mark.parametrize(("policy", "make_env", "options"), [RUNS[name] for name in CHUNKED], ids=CHUNKED)
def test_chunks_change_results_by_rounding_only(policy, make_env, options, chunk_size):
    steps = []
    for size in (None, chunk_size):
        model = TRPO(policy, make_env(), chunk_size=size, **SMALL | options)
        old = parameters(model.policy)
        update = policy_step(model)
        new = parameters(model.policy)
        steps.append(th.cat([(new[name] - old[name]).flatten() for name in sorted(update.moved)]))
    assert th.linalg.norm(steps[1] - steps[0]) < 1e-3 * th.linalg.norm(steps[0])


def test_a_float_of_timesteps_is_fine():
    seen = set()
    model = TRPO("MlpPolicy", RandomEnv(), **SMALL)
    model.learn(2e2, callback=lambda local, _: seen.add(repr(local["total_timesteps"])) or True)
    assert model.num_timesteps == 64 * 4
    assert seen == {"200"}


def test_learning_twice_starts_from_zero_unless_asked_to_continue():
    model = TRPO("MlpPolicy", RandomEnv(), **SMALL)
    assert model.learn(128).num_timesteps == 128
    assert model.learn(64).num_timesteps == 64
    assert model.learn(64, reset_num_timesteps=False).num_timesteps == 128
    assert model.logger.name_to_value["train/n_updates"] == 4


def test_another_environment_can_be_set():
    model = TRPO("MlpPolicy", RandomEnv(), **SMALL).learn(64)
    env = RandomEnv(reward_scale=2.0)
    model.set_env(env)
    assert model.env.envs[0].unwrapped is env
    assert one_update(model).outcome == "accepted"
    with pytest.raises(ValueError, match="Action spaces do not match"):
        model.set_env(RandomEnv(action_space=BOX_ACTION))


def test_a_custom_rollout_buffer_is_used():
    class Buffer(RolloutBuffer):
        def __init__(self, *args, note, **kwargs):
            super().__init__(*args, **kwargs)
            self.note = note

    model = TRPO("MlpPolicy", RandomEnv(), rollout_buffer_class=Buffer, rollout_buffer_kwargs={"note": "mine"}, **SMALL)
    assert one_update(model).outcome == "accepted"
    assert type(model.rollout_buffer) is Buffer
    assert model.rollout_buffer.note == "mine"


def test_every_schedule_follows_the_progress_even_past_the_end():
    schedules = {
        "target_kl": lambda progress_remaining: 0.03 * progress_remaining,
        "learning_rate": lambda progress_remaining: 0.002 * progress_remaining,
    }
    logs = logs_of(TRPO("MlpPolicy", RandomEnv(), **SMALL, **schedules), 150)
    remaining = [1 - 64 / 150, 1 - 128 / 150, 0.0]
    for name, schedule in schedules.items():
        assert [log[f"train/{name}"] for log in logs] == pytest.approx([schedule(progress) for progress in remaining])
    assert [log["outcomes"][0] for log in logs] == ["accepted", "accepted", "empty trust region"]
    assert all(log["train/kl_divergence_loss"] <= log["train/target_kl"] for log in logs)


def test_a_trust_region_that_shrinks_to_nothing_leaves_the_policy_alone():
    model = TRPO("MlpPolicy", RandomEnv(), target_kl=lambda progress_remaining: 0.01 * progress_remaining, **SMALL)
    update = one_update(model)
    assert update.outcome == "empty trust region"
    assert update.log["train/target_kl"] == update.kl == 0.0
    assert update.moved
    assert all("value_net" in name for name in update.moved)


@pytest.mark.parametrize("action_space", [None, BOX_ACTION, spaces.MultiBinary(2)], ids=["Discrete", "Box", "MultiBinary"])
@pytest.mark.parametrize("gamma", [0.5, 0.99])
def test_no_reward_and_a_zero_critic_give_no_step(action_space, gamma):
    model = TRPO("MlpPolicy", RandomEnv(action_space=action_space, reward_scale=0.0), gamma=gamma, **SMALL)
    th.nn.init.zeros_(model.policy.value_net.weight)
    update = one_update(model)
    assert update.outcome == "zero gradient"
    assert update.log["train/is_line_search_success"] == 0.0
    assert not update.moved


@pytest.mark.parametrize("gamma", [0.9, 0.97])
def test_rounding_errors_of_a_perfect_critic_give_no_step(gamma):
    class ConstantReward(RandomEnv):
        def step(self, action):
            observation, _, _, truncated, info = super().step(action)
            return observation, 0.3, False, truncated, info

    model = TRPO("MlpPolicy", ConstantReward(), gamma=gamma, **SMALL)
    th.nn.init.zeros_(model.policy.value_net.weight)
    th.nn.init.constant_(model.policy.value_net.bias, 0.3 / (1.0 - gamma))
    update = one_update(model)
    assert model.rollout_buffer.advantages.std() > 0.0
    assert update.outcome == "zero gradient"
    assert all("value_net" in name for name in update.moved)


@pytest.mark.parametrize("as_schedule", [False, True])
def test_an_entropy_bonus_alone_raises_the_entropy(as_schedule):
    env = RandomEnv(action_space=BOX_ACTION, reward_scale=0.0)
    ent_coef = (lambda progress_remaining: 1.0 - progress_remaining) if as_schedule else 1.0
    model = TRPO("MlpPolicy", env, ent_coef=ent_coef, **SMALL)
    th.nn.init.zeros_(model.policy.value_net.weight)
    assert policy_step(model).log["train/improvement"] > 0.0
    assert (model.policy.log_std > 0.0).all()


def test_the_critics_gradient_is_bounded_by_max_grad_norm():
    policy_kwargs = {"optimizer_class": th.optim.SGD}
    options = SMALL | {"batch_size": 64, "n_critic_updates": 1, "learning_rate": 1.0, "max_grad_norm": 0.25}
    model = TRPO("MlpPolicy", RandomEnv(reward_scale=10.0), policy_kwargs=policy_kwargs, **options)
    old = parameters(model.policy)
    moved = critic_fit(model).moved
    new = parameters(model.policy)
    assert th.cat([(new[name] - old[name]).flatten() for name in moved]).norm() == pytest.approx(0.25, rel=1e-3)


def test_a_max_grad_norm_of_zero_does_not_clip():
    policies = [TRPO("MlpPolicy", RandomEnv(), max_grad_norm=bound, **SMALL).learn(64).policy for bound in (None, 0.0)]
    assert same_parameters(*policies)


def test_the_critic_learns_the_returns():
    model = TRPO("MlpPolicy", IdentityEnv(1), **SMALL | {"n_critic_updates": 20}, gamma=0.5)  # every return is 2
    logs = logs_of(model, 64 * 5)
    assert logs[-1]["train/value_loss"] < 0.1 * logs[0]["train/value_loss"]
    assert logs[-1]["outcomes"][1] == "fitted"


def test_training_works_with_vec_normalize():
    env = VecNormalize(make_vec_env(RandomEnv, n_envs=2))
    model = TRPO("MlpPolicy", env, **SMALL)
    assert one_update(model).outcome == "accepted"
    assert model.get_vec_normalize_env() is env
    assert env.obs_rms.count > 128


def test_environments_in_subprocesses_train_like_those_in_this_process():
    policies = []
    for vec_env_cls, options in ((DummyVecEnv, {}), (SubprocVecEnv, {"start_method": "fork"})):  # the quickest start
        env = make_vec_env(RandomEnv, n_envs=2, vec_env_cls=vec_env_cls, vec_env_kwargs=options)
        policies.append(TRPO("MlpPolicy", env, **SMALL).learn(2 * 128).policy)
        env.close()
    assert same_parameters(*policies)


def test_stacked_image_frames_train():
    env = VecFrameStack(make_vec_env(FakeImageEnv, n_envs=2, env_kwargs={"screen_height": 36, "screen_width": 36}), n_stack=3)
    model = TRPO("CnnPolicy", env, **SMALL | {"n_steps": 32})
    assert model.observation_space.shape == (3, 36, 36)
    assert one_update(model).outcome == "accepted"
    assert model.predict(env.reset())[0].shape == (2,)
