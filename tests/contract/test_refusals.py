"""Contract: what cannot work is refused by name before any work is lost, and what SB3 takes is taken."""

import math
from contextlib import contextmanager
from decimal import Decimal
from fractions import Fraction

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from helpers.envs import BOX_ACTION, DICT, IMAGE, VECTOR, RandomEnv
from helpers.runs import parameters_of
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, StopTrainingOnMaxEpisodes
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack
from stable_baselines3.dqn.policies import DQNPolicy

from sb3_trpo import TRPO
from sb3_trpo.policies import MlpPolicy

SMALL = {"n_steps": 32, "batch_size": 32, "n_critic_updates": 1, "seed": 0, "device": "cpu"}


class Untouched(gym.Env):
    """Must not be used before it is refused."""

    def __init__(self, observation_space: spaces.Space = VECTOR, action_space: spaces.Space | None = None) -> None:
        self.observation_space, self.action_space = observation_space, action_space or spaces.Discrete(2)

    def reset(self, **_):
        raise AssertionError("it was reset")


REFUSED = {
    "text": (spaces.Text(5), r"observation space is Text"),
    "text under a key": (spaces.Dict(a=spaces.Text(5), b=VECTOR), r"observation space's part 'a' is Text"),
    "empty dict": (spaces.Dict({}), r"observation space is an empty Dict"),
    "nested dict": (spaces.Dict(a=spaces.Dict(b=VECTOR)), r"observation space's part 'a' is Dict"),
    "tuple": (spaces.Tuple((VECTOR, VECTOR)), r"observation space is Tuple"),
    "sequence": (spaces.Sequence(VECTOR), r"observation space is Sequence.*TransformObservation\.$"),
    "nothing": (spaces.Box(-1.0, 1.0, (0,)), r"observation space is Box.* has no entries"),
    "nothing under a key": (spaces.Dict(a=spaces.Box(-1.0, 1.0, (2, 0)), b=VECTOR), r"part 'a' is Box.* has no entries"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_unsupported_observation_spaces_are_refused_and_the_supported_ones_named(name):
    space, text = REFUSED[name]
    with pytest.raises(ValueError, match=text) as refusal:
        TRPO("MultiInputPolicy" if isinstance(space, spaces.Dict) else "MlpPolicy", Untouched(space), **SMALL)
    if "no entries" not in text:
        assert "Box, Discrete, MultiDiscrete and MultiBinary" in str(refusal.value)


def test_an_action_space_of_nothing_is_refused():
    with pytest.raises(ValueError, match=r"action space is Box.* has no entries"):
        TRPO("MlpPolicy", Untouched(action_space=spaces.Box(-1.0, 1.0, (0,))), **SMALL)


def test_a_space_is_refused_when_an_environment_is_set_later():
    model = TRPO("MlpPolicy", RandomEnv(), **SMALL)
    with pytest.raises(ValueError, match="observation space is Text"):
        model.set_env(Untouched(spaces.Text(5)))


def test_a_new_model_needs_an_environment_and_a_loaded_one_does_not(tmp_path):
    with pytest.raises(ValueError, match=r"env is None.*TRPO\.load"):
        TRPO("MlpPolicy", None, **SMALL)
    TRPO("MlpPolicy", RandomEnv(), **SMALL).save(tmp_path / "model")
    assert TRPO.load(tmp_path / "model").predict(np.zeros(3, np.float32))[0] in range(3)


def test_a_policy_instance_is_refused_and_the_error_shows_how_to_start_from_its_weights():
    policy = ActorCriticPolicy(VECTOR, BOX_ACTION, lambda _: 1e-3, net_arch=[8])  # as imitation's behavioral cloning has one
    env = RandomEnv(VECTOR, BOX_ACTION)
    with pytest.raises(TypeError, match=r"policy is an instance of ActorCriticPolicy.*load_state_dict"):
        TRPO(policy, Untouched(), **SMALL)
    model = TRPO(ActorCriticPolicy, env, policy_kwargs={"net_arch": [8]}, **SMALL)
    model.policy.load_state_dict(policy.state_dict())  # as the message says
    assert all(map(th.equal, policy.parameters(), model.policy.parameters()))
    model.learn(32)


@pytest.mark.parametrize("policy", [None, 3, dict, th.nn.Linear], ids=repr)
def test_anything_else_is_no_policy(policy):
    with pytest.raises(TypeError, match=r"^policy is .*, but must be a name"):
        TRPO(policy, Untouched(), **SMALL)


@pytest.mark.parametrize(
    "total",
    ["128", b"128", None, math.nan, np.nan, [128], {}, 1j, 10**400, np.array("7"), th.tensor([1.0, 2.0]), float],
    ids=repr,
)
def test_totals_that_are_not_numbers_are_refused_before_anything_is_done(total):
    model = TRPO("MlpPolicy", Untouched(), **SMALL)
    with pytest.raises(ValueError, match=r"^total_timesteps is .*, but must be a number of environment steps"):
        model.learn(total)


@pytest.mark.parametrize("env", [3, RandomEnv, object()], ids=["number", "class", "object"])
def test_what_is_no_environment_is_refused_by_sb3(env):
    with pytest.raises(ValueError, match="not a Gymnasium environment"):
        TRPO("MlpPolicy", env, **SMALL)


UNFIT_POLICIES = {
    "MultiInputPolicy": "policy is 'MultiInputPolicy', but for Box observations it must be MlpPolicy or CnnPolicy",
    DQNPolicy: "policy is DQNPolicy, but must be ActorCriticPolicy or a subclass",
}


@pytest.mark.parametrize("policy", UNFIT_POLICIES)
def test_a_policy_that_does_not_fit_is_refused(policy):
    with pytest.raises(ValueError, match=UNFIT_POLICIES[policy]):
        TRPO(policy, Untouched(), **SMALL)


def test_weights_that_observations_do_not_fit_are_named():
    for policy in ("MlpPolicy", General):
        model = TRPO(policy, RandomEnv(), **SMALL)
        model.policy.double()
        with pytest.raises(ValueError, match=r"parameters are of the type torch\.float64, but SB3 passes"):
            model.learn(32)


@pytest.mark.parametrize(
    ("total", "n_timesteps"),
    [
        *((kind(64), 64) for kind in (int, float, np.int64, np.float32, Decimal, Fraction, np.array, th.tensor)),
        *((total, 0) for total in (0, -1, -math.inf, False)),
        (63.5, 64),
        (64.5, 96),
        (1, 32),
    ],
    ids=repr,
)
def test_totals_that_sb3_takes_are_taken(total, n_timesteps):
    assert TRPO("MlpPolicy", RandomEnv(), **SMALL).learn(total).num_timesteps == n_timesteps
    if isinstance(total, (int, float)):
        assert PPO("MlpPolicy", RandomEnv(), n_steps=32, batch_size=32, n_epochs=1).learn(total).num_timesteps == n_timesteps


def test_a_run_without_end_goes_on_until_a_callback_ends_it():
    seen = []

    class Noting(BaseCallback):
        def _on_step(self) -> bool:
            seen.append(self.model._current_progress_remaining)
            return True

    model = TRPO("MlpPolicy", RandomEnv(), **SMALL, learning_rate=lambda progress: 1e-3 * progress)
    model.learn(math.inf, callback=CallbackList([Noting(), StopTrainingOnMaxEpisodes(20)]))
    assert 128 < model.num_timesteps < 200  # 20 episodes of seven steps
    assert set(seen) == {1.0}
    assert model.policy.optimizer.param_groups[0]["lr"] == 1e-3
    before = model.num_timesteps
    model.learn(math.inf, callback=StopTrainingOnMaxEpisodes(5), reset_num_timesteps=False)
    assert model.num_timesteps > before
    assert model.learn(32).num_timesteps == 32


def test_the_progress_bar_knows_a_run_without_end(capsys):
    pytest.importorskip("rich")
    model = TRPO("MlpPolicy", RandomEnv(), **SMALL)
    model.learn(math.inf, callback=StopTrainingOnMaxEpisodes(20), progress_bar=True)
    assert model.num_timesteps > 128
    capsys.readouterr()


@contextmanager
def default_dtype(dtype: th.dtype):
    before = th.get_default_dtype()
    th.set_default_dtype(dtype)
    try:
        yield
    finally:
        th.set_default_dtype(before)


class General(MlpPolicy):
    def forward(self, *args, **kwargs):
        return super().forward(*args, **kwargs)


@pytest.mark.parametrize("dtype", [th.float64, th.float16, th.bfloat16], ids=str)
@pytest.mark.parametrize(("policy", "space"), [("MlpPolicy", VECTOR), ("CnnPolicy", IMAGE), ("MultiInputPolicy", DICT)])
def test_a_default_type_other_than_that_of_observations_is_refused(policy, space, dtype):
    with default_dtype(dtype), pytest.raises(ValueError, match=f"default type is {dtype}, but must be torch.float32"):
        TRPO(policy, Untouched(space), **SMALL)


@pytest.mark.parametrize("policy", ["MlpPolicy", General], ids=["fast", "general"])
@pytest.mark.parametrize("settings", [{}, {"use_sde": True}], ids=str)
def test_the_default_type_may_change_once_the_model_is_made(settings, policy):
    def learned(dtype: th.dtype) -> dict[str, bytes]:
        model = TRPO(policy, RandomEnv(VECTOR, BOX_ACTION), **SMALL, **settings)
        with default_dtype(dtype):
            return parameters_of(model.learn(64))

    assert learned(th.float64) == learned(th.float32)


def test_a_policy_that_chooses_its_type_keeps_it():
    class Double(MlpPolicy):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.double()

    assert next(TRPO(Double, RandomEnv(), **SMALL).policy.parameters()).dtype is th.float64


class Huge(RandomEnv):
    """Observes numbers that are finite in float64 and infinite in float32."""

    def __init__(self, entries: tuple[int, ...], when: int = 0) -> None:
        super().__init__(spaces.Box(-np.inf, np.inf, (2, 3), np.float64))
        self.entries, self.when, self.now = entries, when, 0

    def observe(self):
        observation = np.zeros((2, 3))
        if self.now >= self.when:
            for entry in self.entries:
                observation[1, entry] = 1e39
        self.now += 1
        return observation

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.observe(), {}

    def step(self, action):
        _, *rest = super().step(action)
        return self.observe(), *rest


@pytest.mark.filterwarnings("ignore:overflow encountered in cast")  # older buffers of SB3 keep float32 and nothing else
@pytest.mark.parametrize("policy", ["MlpPolicy", General], ids=["fast", "general"])
@pytest.mark.parametrize("entries", [(0,), (1,), (0, 1)], ids=str)
@pytest.mark.parametrize("when", [0, 5])
def test_numbers_too_large_for_float32_are_named_with_their_place(entries, when, policy):
    model = TRPO(policy, Huge(entries, when), **SMALL)
    before = parameters_of(model)
    with pytest.raises(ValueError, match=r"non-finite observations: (1e\+39, too large for the float32|inf in )") as refusal:
        model.learn(64)
    assert "in environment 0 at step " in str(refusal.value)
    assert f"in entry [1, {entries[0]}]" in str(refusal.value)
    assert parameters_of(model) == before


class CutOff(RandomEnv):
    """Observes something non-finite only when a time limit cuts an episode off after six steps."""

    def __init__(self, end: float) -> None:
        super().__init__(spaces.Box(-np.inf, np.inf, (3,), np.float64), BOX_ACTION)
        self.end = end

    def step(self, action):
        observation, reward, _, _, info = super().step(action)
        is_over = self.n_steps == 6
        return (np.array([0.0, self.end, 0.0]) if is_over else observation), reward, False, is_over, info


@pytest.mark.parametrize("policy", ["MlpPolicy", General], ids=["fast", "general"])
@pytest.mark.parametrize("end", [math.inf, math.nan, 1e39])
def test_the_last_observation_of_an_episode_is_named_too(end, policy):
    """A squashing activation would hide it, but its value enters the returns."""
    model = TRPO(policy, gym.wrappers.TimeLimit(CutOff(end), 6), **SMALL)
    with pytest.raises(ValueError, match=r"non-finite terminal_observation: .* at step 5 of the rollout, in entry \[1\]"):
        model.learn(32)


def test_the_first_place_is_named_where_frames_are_stacked():
    class Once(Huge):
        def observe(self):
            self.now += 1
            return np.full((2, 3), 1e39 if self.now in (6, 33) else 0.0)

    env = VecFrameStack(DummyVecEnv([lambda: Once(())]), 2, channels_order="first")
    with pytest.raises(ValueError, match="at step 5 of the rollout"):
        TRPO("MlpPolicy", env, **SMALL).learn(32)


def test_large_numbers_of_float64_that_float32_holds_are_learned_from():
    class Large(Huge):
        def observe(self):
            return np.full((2, 3), 1e38)

    TRPO("MlpPolicy", Large(()), **SMALL).learn(32)
