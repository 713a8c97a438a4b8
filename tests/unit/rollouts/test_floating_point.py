"""Arithmetic that may underflow: ``np.seterr`` changes no number, and the user's settings stay."""

import warnings
from functools import partial

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from helpers.envs import BOX_ACTION, VECTOR
from helpers.rollouts import GeneralMlp
from helpers.runs import parameters_of
from stable_baselines3.common.buffers import RolloutBuffer

from sb3_trpo import TRPO
from sb3_trpo.rollouts.advantages import compute_advantages
from sb3_trpo.rollouts.floating_point import as_float32, quietly, quietly_if_needed

raising = partial(np.errstate, all="raise")
"""What SB3's guide on NaN recommends."""


class Endless(gym.Env):
    """Episodes never end; observations are random, in float64."""

    observation_space = spaces.Box(-np.inf, np.inf, (3,), np.float64)

    def __init__(self, scale: float = 1.0, action_space: spaces.Space = BOX_ACTION) -> None:
        self.scale, self.action_space = scale, action_space
        self.random = np.random.default_rng(0)

    def reset(self, *, seed=None, options=None):
        return self.observe(), {}

    def step(self, action):
        assert np.geterr()["under"] == self.expected
        return self.observe(), 1.0 + float(action[0]), False, False, {}

    def observe(self):
        self.expected = np.geterr()["under"]
        return self.scale * self.random.uniform(-1.0, 1.0, 3)


CASES = {
    "far decay": ({}, {"gamma": 0.5, "n_steps": 2048}),
    "nearer decay": ({}, {"gamma": 0.9, "gae_lambda": 0.8, "n_steps": 4096}),
    "defaults on a long rollout": ({}, {"n_steps": 16384}),
    "tiny observations": ({"scale": 1e-42}, {}),
    "observations that are 0 in float32": ({"scale": 1e-300}, {}),
    "tiny noise": ({}, {"policy_kwargs": {"log_std_init": -97.0}}),
    "choices": ({"action_space": spaces.MultiDiscrete([3, 4])}, {}),
    "tiny state-dependent noise": ({}, {"use_sde": True, "policy_kwargs": {"log_std_init": -97.0}}),
    "tiny squashed actions": ({"scale": 1e-42}, {"use_sde": True, "policy_kwargs": {"squash_output": True, "net_arch": []}}),
}


@pytest.mark.parametrize(
    ("case", "policy"),
    [*((case, "MlpPolicy") for case in CASES), ("far decay", GeneralMlp)],
)  # SB3's loop and buffer underflow by themselves on tiny numbers, and take long for long rollouts
def test_parameters_are_those_without_the_setting(case, policy):
    of_env, settings = CASES[case]
    settings = {"n_steps": 64, "batch_size": 64, "n_critic_updates": 2, "seed": 0, "device": "cpu"} | settings

    def learned() -> dict[str, bytes]:
        return parameters_of(TRPO(policy, Endless(**of_env), **settings).learn(settings["n_steps"]))

    without = learned()
    with raising():
        assert learned() == without


def test_advantages_of_an_endless_episode_are_the_geometric_sum():
    """A constant error of 1 at each step has the advantage ``(1 - c^n) / (1 - c)``, n steps before the end."""
    gamma, gae_lambda, n_steps = 0.9, 0.8, 4096
    buffer = RolloutBuffer(n_steps, VECTOR, BOX_ACTION, gamma=gamma, gae_lambda=gae_lambda)
    buffer.rewards[:] = 1.0
    with raising():
        compute_advantages(buffer, np.zeros(1, np.float32), np.zeros(1, bool))
    n = np.arange(n_steps, 0, -1.0)
    expected = (1.0 - np.exp(n * np.log(gamma * gae_lambda))) / (1.0 - gamma * gae_lambda)
    np.testing.assert_allclose(buffer.advantages[:, 0], expected, rtol=1e-6)


def test_casting_to_what_policies_see():
    assert as_float32(np.array([1e39, -1e39, 1e-300, 0.5])).tolist() == [np.inf, -np.inf, 0.0, 0.5]
    same = np.zeros(3, np.float32)
    assert as_float32(same) is same
    with raising():
        assert as_float32(np.array([1e39, 1e-300])).tolist() == [np.inf, 0.0]


@pytest.mark.parametrize(("setting", "complaint"), [("raise", FloatingPointError), ("warn", RuntimeWarning)])
def test_a_computation_is_repeated_only_if_numpy_complains(setting, complaint):
    calls = []

    def product():
        calls.append(None)
        return np.float32(1e-30) * np.array([1e-30], np.float32)

    assert quietly_if_needed(product).tolist() == [0.0]
    assert len(calls) == 1
    with warnings.catch_warnings(), np.errstate(under=setting):
        warnings.simplefilter("error")
        assert quietly(product).tolist() == quietly_if_needed(product).tolist() == [0.0]
        assert len(calls) == 4
        with pytest.raises(complaint):
            product()
