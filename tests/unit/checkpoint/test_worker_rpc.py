"""Calls with environments in this process and in workers; ``test_signals.py`` has those about signals."""

from functools import partial

import gymnasium as gym
import pytest
from helpers.envs import RandomEnv
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv

from sb3_trpo.checkpoint.codecs.codec import MismatchError
from sb3_trpo.checkpoint.worker_rpc import ANSWER, CANNOT_BE_CALLED, call, call_all


def monitored() -> gym.Env:
    return Monitor(RandomEnv())


def set_number(env: gym.Env, number: int) -> None:
    env.unwrapped.number = number


def number_of(env: gym.Env, factor: int = 1) -> int:
    return factor * env.unwrapped.number


def fail(env: gym.Env) -> None:
    raise KeyError("out of order")


forked = partial(SubprocVecEnv, start_method="fork")


@pytest.fixture(params=[DummyVecEnv, forked], ids=["here", "in workers"])
def vec_env(request):
    made = request.param([monitored, monitored])
    yield made
    made.close()


def test_each_env_is_called_with_the_arguments(vec_env):
    for index in range(2):
        call(vec_env, index, set_number, index + 5)
    assert [call(vec_env, index, number_of) for index in range(2)] == [5, 6]
    assert call(vec_env, 1, number_of, 10) == 60
    call_all(vec_env, set_number, 3)
    assert [call(vec_env, index, number_of) for index in range(2)] == [3, 3]


def test_an_error_is_raised_in_this_process_and_the_worker_lives(vec_env):
    with pytest.raises((MismatchError, KeyError), match="out of order"):
        call(vec_env, 0, fail)
    call(vec_env, 0, set_number, 4)
    assert call(vec_env, 0, number_of) == 4


def test_a_call_in_this_process_leaves_nothing_with_the_env():
    vec_env = DummyVecEnv([monitored])
    call(vec_env, 0, set_number, 1)
    assert ANSWER not in vars(vec_env.envs[0])


def test_a_worker_with_a_bare_env_does_not_run_the_call():
    """SB3 asks wrappers alone what they are."""
    vec_env = forked([RandomEnv, monitored])
    assert call(vec_env, 0, set_number, 1) == CANNOT_BE_CALLED
    assert "Monitor" in CANNOT_BE_CALLED
    assert call(vec_env, 1, set_number, 1) is None
    vec_env.close()


def test_workers_that_are_closed_or_busy_are_not_called():
    vec_env = forked([monitored])
    vec_env.reset()
    vec_env.step_async([0])
    call_all(vec_env, fail)
    vec_env.step_wait()
    vec_env.close()
    call_all(vec_env, fail)
