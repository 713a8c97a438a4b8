"""Episodes that are replayed, since the states of their simulators cannot be written."""

import warnings
from functools import partial

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from helpers.env_states import (
    assert_alike,
    changed,
    get_state,
    is_same,
    lander,
    record_of,
    roam,
    sent,
    set_state,
    transfer,
    transfer_vec,
)
from helpers.resumable_runs import assert_resumes_exactly
from helpers.runs import outcome
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecNormalize

from sb3_trpo import TRPO
from sb3_trpo.checkpoint import ResumableCheckpoint
from sb3_trpo.checkpoint.codecs.codec import Codecs, MismatchError
from sb3_trpo.checkpoint.codecs.inspection import qualified_name
from sb3_trpo.checkpoint.codecs.registry import CODECS, REPLAYED
from sb3_trpo.checkpoint.codecs.simulators import episode_recorder
from sb3_trpo.checkpoint.codecs.simulators.episode_recorder import (
    ReplayedSimulator,
    episodes_recorded,
    recorder_of,
    start_recording,
)
from sb3_trpo.checkpoint.codecs.simulators.replay import ReplayedEnvCodec


def test_a_restored_env_can_be_encoded_and_restored_again():
    one, other, third = (roam(lander(), n, seed=n) for n in (210, 30, 50))
    transfer(one, other)
    for env in (one, other):
        env.step(2)
    transfer(other, third)
    assert assert_alike(one, third, n_steps=200) >= 1


@pytest.mark.parametrize("seeded", [False, True])
def test_an_env_that_was_never_reset_can_be_restored(seeded):
    """Envs of evaluations are restored before their first reset."""
    one, other = roam(lander(), 130, seed=1), lander()
    one.reset(seed=7 if seeded else None)
    transfer(one, other)
    other.action_space.seed(3)
    one.action_space.seed(3)
    assert assert_alike(one, other, n_steps=150) >= 1


def test_an_array_of_actions_may_be_used_again():
    one, other = lander(continuous=True), lander(continuous=True)
    one.reset(seed=1)
    action = np.zeros(2, np.float32)
    for n in range(40):
        action[:] = np.sin(n), np.cos(n)
        one.step(action)
    transfer(one, other)
    assert is_same(one.step(action), other.step(action))


class Drawing(gym.Wrapper):
    """Draws from the generator of the env itself, as SB3's NoopResetEnv does: before and after its steps."""

    def reset(self, **arguments):
        answer = self.env.reset(**arguments)
        self.unwrapped.np_random.integers(3)
        return answer

    def step(self, action):
        keeps = self.unwrapped.np_random.random() < 0.5
        observation, reward, *rest = self.env.step(action if keeps else 0)
        if action == 1:
            reward += self.unwrapped.np_random.random()
        return observation, reward, *rest


@pytest.mark.parametrize("n_steps", [0, 1, 60, 150])
def test_wrappers_may_draw_from_the_generator_of_the_env(n_steps):
    one, other = (Drawing(lander()) for _ in range(2))
    roam(one, n_steps, seed=1)
    roam(other, 20, seed=2)
    transfer(one, other)
    assert assert_alike(one, other, n_steps=200) >= 1


def test_a_simulation_that_was_changed_before_the_episode_is_restored_and_one_changed_during_it_is_refused():
    one, other = lander(), roam(lander(), 20, seed=2)
    one.unwrapped.gravity = -3.0
    roam(one, 40, seed=1)
    transfer(one, other)
    assert other.unwrapped.gravity == -3.0
    assert_alike(one, other, n_steps=150)
    roam(one, 20, seed=1)
    one.unwrapped.lander.linearVelocity = (3.0, 0.0)
    one.step(0)
    with pytest.raises(MismatchError, match=r"its episode of 21 steps came out differently"):
        set_state(other, sent(get_state(one)))


FORGED = {
    "an action that is none": {"array_actions": np.array([0, 7])},
    "actions of another kind": {"array_actions": np.zeros((3, 2))},
    "no actions": {"array_actions": np.zeros(0)},
    "fewer actions": {"array_actions": np.array([0, 1])},
    "another digest": {"digest": "0"},
    "another class": {"replayed": "gymnasium.envs.box2d.car_racing.CarRacing"},
    "no generators": {"generators": None},
    "generators of another kind": {"generators": {"list": [{"dict": []}, {"dict": []}]}},
    "arguments that reset() has not": {"arguments": {"dict": [["color", 1]]}},
    "no simulator": {"simulator": None},
}


@pytest.mark.parametrize("change", FORGED)
def test_a_forged_state_is_refused(change):
    env = roam(lander(), 30, seed=1)
    with pytest.raises(MismatchError):
        set_state(env, changed(sent(get_state(env)), **FORGED[change]))


class Lottery(gym.Env):
    """A simulator in an object that cannot be looked into, which begins where the number of resets says."""

    def __init__(self, price=2, generator=np.random.PCG64):
        self.observation_space, self.action_space = spaces.Box(-np.inf, np.inf, (1,)), spaces.Discrete(3)
        self.price, self.n_resets, self.n_played, self.hidden = price, 0, 0, iter(())
        self.generator = generator

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if seed is not None:
            self.np_random = np.random.Generator(self.generator(seed))
        self.n_resets += 1
        self.total = float(self.np_random.random()) + (options or {}).get("bonus", 0)
        self.hidden = iter(range(self.n_resets, 10**6))
        return np.float32([self.total]), {}

    def step(self, action):
        self.n_played = next(self.hidden)
        self.total += float(action) * self.price + float(self.np_random.normal())
        return np.float32([self.total]), float(self.n_played), self.n_played % 50 == 0, False, {}


class LotterySimulator(ReplayedSimulator):
    def before_reset(self, env):
        return env.n_resets

    def to_arrays(self, before):
        return {"resets": np.array([before])}

    def prepare(self, env, arrays):
        env.n_resets = int(arrays["resets"][0])

    def evidence(self, env):
        return b""

    def settings(self, env):
        return {"price": env.price}

    def steps_draw(self, env):
        return True


SIMULATORS = {qualified_name(Lottery): LotterySimulator()}
CODECS_WITH_LOTTERY = Codecs(
    ReplayedEnvCodec(SIMULATORS) if isinstance(codec, ReplayedEnvCodec) else codec for codec in CODECS
)
read_state, write_state = (partial(each, codecs=CODECS_WITH_LOTTERY) for each in (get_state, set_state))


def playing(env):
    start_recording(env, SIMULATORS)
    return env


def test_what_a_simulator_knew_before_its_reset_and_the_arguments_of_reset_are_restored():
    one, other = playing(Lottery()), roam(playing(Lottery()), 70, seed=2)
    roam(one, 120, seed=1)
    one.reset(options={"bonus": 1000})
    one.step(1)
    transfer(one, other, CODECS_WITH_LOTTERY)
    assert (other.n_resets, other.total) == (one.n_resets, one.total)
    assert one.total > 900
    assert assert_alike(one, other, n_steps=150) >= 2


def test_a_setting_that_differs_is_named():
    state = sent(read_state(roam(playing(Lottery(price=2)), 20, seed=1)))
    with pytest.raises(MismatchError, match=r"price was 2, but is 3$"):
        write_state(playing(Lottery(price=3)), state)


def test_an_episode_that_is_too_long_is_unsupported(monkeypatch):
    monkeypatch.setattr(episode_recorder, "LONGEST_EPISODE", 20)
    env = playing(Lottery())
    env.reset(seed=1)
    for n in range(23):
        assert (read_state(env).unsupported == {}) is (n <= 20)
        env.step(1)
    assert recorder_of(env).actions == []
    env.reset()
    assert read_state(env).unsupported == {}


def test_a_generator_of_another_kind_is_unsupported():
    env = roam(playing(Lottery(generator=np.random.MT19937)), 30, seed=1)
    assert read_state(env).unsupported != {}


KINDS = {"DummyVecEnv": DummyVecEnv, "SubprocVecEnv": partial(SubprocVecEnv, start_method="fork")}


@pytest.mark.parametrize("kind", KINDS)
def test_episodes_of_vectorised_envs_are_recorded_within_the_context(kind):
    pytest.importorskip("Box2D")
    makers = [lambda: Monitor(gym.make("LunarLander-v3"))] * 2
    one, other = (VecNormalize(KINDS[kind](makers)) for _ in range(2))
    try:
        with episodes_recorded([one, other, one], REPLAYED):
            for vec_env, n_steps in ((one, 150), (other, 5)):
                vec_env.seed(n_steps)
                vec_env.reset()
                for n in range(n_steps):
                    vec_env.step(np.array([n % 4, 0]))
            transfer_vec(one, other)
            for n in range(120):
                assert is_same(*(vec_env.step(np.array([n % 4, 2])) for vec_env in (one, other))), f"step {n}"
        assert record_of(one).unsupported != {}
    finally:
        one.close()
        other.close()


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_on_landers_that_crashes_ends_like_one_that_does_not(kind, tmp_path):
    pytest.importorskip("Box2D")

    def script(folder, crash):
        env = VecNormalize(make_vec_env("LunarLander-v3", 2, seed=3, vec_env_cls=KINDS[kind]))
        model = TRPO("MlpPolicy", env, n_steps=64, batch_size=64, n_critic_updates=2, seed=0)
        try:
            with episodes_recorded([env], REPLAYED), warnings.catch_warnings():
                warnings.filterwarnings("error", ".*simulator.*|.*environment.*")
                model.learn(1280, callback=[ResumableCheckpoint(folder, every=128, verbose=0), crash])
            return outcome(model, None)
        finally:
            env.close()

    assert_resumes_exactly(script, tmp_path, 200, 700, 1100)
