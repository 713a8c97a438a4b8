"""Atari's games, replayed from their last reset."""

import re
import warnings
from functools import partial

import gymnasium as gym
import numpy as np
import pytest
from helpers.env_states import assert_alike, get_state, is_same, replayed_part, roam, sent, set_state, transfer
from helpers.resumable_runs import assert_resumes_exactly
from helpers.runs import outcome
from stable_baselines3.common.atari_wrappers import AtariWrapper
from stable_baselines3.common.env_util import make_atari_env
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecFrameStack

from sb3_trpo import TRPO
from sb3_trpo.checkpoint import ResumableCheckpoint
from sb3_trpo.checkpoint.codecs.codec import MismatchError
from sb3_trpo.checkpoint.codecs.registry import REPLAYED
from sb3_trpo.checkpoint.codecs.simulators import atari
from sb3_trpo.checkpoint.codecs.simulators.episode_recorder import episodes_recorded, start_recording, stop_recording

ale_py = pytest.importorskip("ale_py")
pytest.importorskip("cv2")  # for SB3's AtariWrapper
gym.register_envs(ale_py)

GAMES = {
    "no frames skipped": {"id": "BreakoutNoFrameskip-v4"},
    "sticky actions": {"id": "ALE/Breakout-v5", "repeat_action_probability": 0.5},
    "frames skipped at random": {"id": "ALE/Pong-v5", "frameskip": (2, 5)},
    "another mode": {"id": "ALE/Freeway-v5", "mode": 3, "difficulty": 1},
    "memory as observation": {"id": "ALE/Seaquest-v5", "obs_type": "ram"},
    "grey": {"id": "ALE/Pong-v5", "obs_type": "grayscale"},
    "continuous actions": {"id": "ALE/Breakout-v5", "continuous": True},
    "all actions, and a limit": {"id": "ALE/Alien-v5", "full_action_space": True, "max_num_frames_per_episode": 500},
    "memory that outlives a reset": {"id": "ALE/YarsRevenge-v5"},
    "memory in the cartridge": {"id": "ALE/ElevatorAction-v5"},
}


def game(id="ALE/Breakout-v5", **settings):  # noqa: A002  # as gym.make has it
    env = gym.make(id, **settings)
    start_recording(env, REPLAYED)
    return env


@pytest.mark.parametrize("name", GAMES)
def test_a_game_continues_from_its_state(name):
    one, other = (game(**GAMES[name]) for _ in range(2))
    roam(one, 60, seed=1)
    one.reset()
    for _ in range(70):
        one.step(one.action_space.sample())
    roam(other, 20, seed=2)
    transfer(one, other)
    assert is_same(one.unwrapped.ale.getScreenRGB(), other.unwrapped.ale.getScreenRGB())
    assert_alike(one, other, n_steps=150)
    assert is_same(*(env.reset() for env in (one, other)))
    ends = [env.unwrapped.ale.cloneState(include_rng=True).serialize() for env in (one, other)]
    assert ends[0] == ends[1]


@pytest.mark.parametrize("n_steps", [0, 1, 45, 130])
@pytest.mark.parametrize("task", ["BreakoutNoFrameskip-v4", "ALE/Breakout-v5"])
def test_a_wrapped_game_continues_from_its_state(task, n_steps):
    one, other = (AtariWrapper(Monitor(game(task)), action_repeat_probability=0.1) for _ in range(2))
    roam(one, n_steps, seed=1)
    roam(other, 33, seed=2)
    transfer(one, other)
    assert assert_alike(one, other, n_steps=200) >= 3


def test_a_game_continues_from_its_state_just_after_a_seeded_reset():
    one, other = game(), roam(game(), 50, seed=2)
    roam(one, 70, seed=1)
    one.reset(seed=4)
    transfer(one, other)
    assert_alike(one, other, n_steps=60)


def test_a_recorder_changes_nothing():
    one, other = game(), game()
    stop_recording(other)
    for env in (one, other):
        roam(env, 30, seed=1)
    assert_alike(one, other, n_steps=100)


OTHERS = {
    "repeat_action_probability": (0.5, "repeat_action_probability was 0.25, but is 0.5"),
    "mode": (4, "mode was None, but is 4"),
    "difficulty": (1, "difficulty was None, but is 1"),
    "frameskip": ((2, 4), "frameskip was 4, but is [2, 4]"),
    "id": ("ALE/Pong-v5", "game was 'breakout', but is 'pong'"),
}


@pytest.mark.parametrize("setting", OTHERS)
def test_another_game_or_setting_is_named(setting):
    value, text = OTHERS[setting]
    with pytest.raises(MismatchError, match=re.escape(text)):
        set_state(game(**{setting: value}), sent(get_state(roam(game(), 5, seed=1))))


FORGED = {
    "an action that is none": {"array_actions": np.array([0, 77])},
    "fewer actions": {"array_actions": np.array([0, 1])},
    "too few words": {"generators": np.zeros((2, 600), np.uint64)},
    "one generator": {"generators": np.zeros((1, 625), np.uint64)},
    "a word that is too large": {"generators": np.where(np.arange(625) == 3, 2**33, np.zeros((2, 1), np.uint64))},
    "a position beyond the words": {"generators": np.full((2, 625), 625, np.uint64)},
    "negative words": {"generators": np.full((2, 625), -1)},
    "words that are no integers": {"generators": np.full((2, 625), np.nan)},
    "numbers of one frame": {"frames": np.zeros(1, np.int32)},
    "more memory": {"memory": np.zeros(300, np.uint8)},
    "memory of another kind": {"memory": np.zeros(128)},
    "no memory": {"memory": np.zeros(0, np.uint8)},
}


@pytest.mark.parametrize("change", FORGED)
def test_a_forged_state_is_refused_and_the_process_lives(change):
    env = roam(game(), 30, seed=1)
    env.reset()  # without a seed: it depends on what was before
    env.step(0)
    state = sent(get_state(env))
    node = replayed_part(state)
    assert node["simulator"].keys() == {"frames", "generators", "memory"}, "nothing else is written into the emulator"
    for name, value in FORGED[change].items():
        state.arrays[node["simulator"].get(name) or node["actions"]] = value
    with pytest.raises(MismatchError):
        set_state(env, state)
    roam(env, 20, seed=2)


@pytest.mark.parametrize("change", [change for change in FORGED if "generators" in FORGED[change]])
def test_forged_generators_never_reach_the_emulator(change):
    """A digest that differs would refuse them too, but only when the emulator had them: forged bytes can end the process."""
    state = sent(get_state(roam(game(), 30, seed=1)))
    state.arrays[replayed_part(state)["simulator"]["generators"]] = FORGED[change]["generators"]
    with pytest.raises(MismatchError, match="generators of a game are not what"):
        set_state(game(), state)


def test_a_game_with_sound_is_unsupported():
    """What the sound chip was doing before a reset is heard after it, and is in no state."""
    assert "ale_py._ale_py.ALEInterface" in get_state(roam(game(sound_obs=True), 5, seed=1)).unsupported.values()


def test_a_state_with_another_layout_is_unsupported(monkeypatch):
    env = roam(game(), 5, seed=1)
    assert get_state(env).unsupported == {}
    monkeypatch.setattr(atari, "BEGIN", 20)
    assert "ale_py._ale_py.ALEInterface" in get_state(env).unsupported.values()


KINDS = {"DummyVecEnv": DummyVecEnv, "SubprocVecEnv": partial(SubprocVecEnv, start_method="fork")}


@pytest.mark.parametrize(("kind", "task"), [("DummyVecEnv", "BreakoutNoFrameskip-v4"), ("SubprocVecEnv", "ALE/Breakout-v5")])
def test_a_run_on_a_game_that_crashes_ends_like_one_that_does_not(kind, task, tmp_path):
    def script(folder, crash):
        env = VecFrameStack(make_atari_env(task, 2, seed=3, vec_env_cls=KINDS[kind]), 4)
        small = {"features_extractor_kwargs": {"features_dim": 16}}
        model = TRPO("CnnPolicy", env, n_steps=16, batch_size=32, n_critic_updates=1, seed=0, policy_kwargs=small)
        try:
            with episodes_recorded([env], REPLAYED), warnings.catch_warnings():
                warnings.filterwarnings("error", ".*simulator.*|.*environment.*")
                model.learn(160, callback=[ResumableCheckpoint(folder, every=32, verbose=0), crash])
            return outcome(model, None)
        finally:
            env.close()

    assert_resumes_exactly(script, tmp_path, 50, 140)
