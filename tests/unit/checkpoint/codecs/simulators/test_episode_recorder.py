"""Recording what an environment is given; ``test_replay.py`` restores episodes from it."""

import gymnasium as gym
from helpers.env_states import assert_alike, get_state, lander, recorded, roam, transfer

from sb3_trpo.checkpoint.codecs.registry import REPLAYED
from sb3_trpo.checkpoint.codecs.simulators.episode_recorder import recorder_of, start_recording, stop_recording


def test_without_a_recorder_the_simulator_is_unsupported():
    env = lander()
    stop_recording(env)
    assert any("/world/" in path for path in get_state(roam(env, 5, seed=1)).unsupported)


def test_a_recorder_that_starts_during_an_episode_waits_for_the_next():
    one, other = lander(), lander()
    stop_recording(one)
    one.reset(seed=1)
    start_recording(one, REPLAYED)
    one.step(0)
    assert get_state(one).unsupported != {}
    roam(one, 10, seed=3)
    transfer(one, other)
    assert_alike(one, other, n_steps=50)


def test_a_recorder_leaves_an_env_as_it_was():
    env = lander()
    base = env.unwrapped
    assert {"reset", "step"} <= vars(base).keys()
    start_recording(env, REPLAYED)
    assert isinstance(recorder_of(base)._step.__func__, type(lander))  # the env's own method, not the recorder's
    stop_recording(env)
    assert not {"reset", "step"} & vars(base).keys()
    own = base.step = lambda action: "mine"
    start_recording(env, REPLAYED)
    assert base.step(0) == "mine"
    stop_recording(env)
    assert base.step is own


def test_a_recorder_changes_nothing_and_other_envs_get_none():
    one, other = lander(), lander()
    stop_recording(other)
    for env in (one, other):
        roam(env, 30, seed=1)
    assert assert_alike(one, other, n_steps=200) >= 1
    assert not {"reset", "step"} & vars(recorded(gym.make("CartPole-v1")).unwrapped).keys()


def test_it_records_the_present_episode_from_its_last_reset():
    env = lander()
    env.reset(seed=1)
    for action in (1, 2):
        env.step(action)
    env.reset()
    assert recorder_of(env.unwrapped).actions == []
    for action in (3, 0, 2):
        env.step(action)
    assert recorder_of(env.unwrapped).actions == [3, 0, 2]
