"""Arithmetic that may underflow: ``np.seterr`` changes no number, and the user's settings stay."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from helpers.runs import parameters_of
from stable_baselines3.common.buffers import RolloutBuffer

from sb3_trpo import TRPO
from sb3_trpo.parallel.running_statistics import Moments, added
from sb3_trpo.policies import MlpPolicy
from sb3_trpo.rollouts.advantages import compute_advantages
from sb3_trpo.rollouts.floating_point import as_float32, quietly, quietly_if_needed


@contextmanager
def raising() -> Iterator[None]:
    """Do what SB3's guide on NaN recommends."""
    with np.errstate(all="raise"):
        yield


class Endless(gym.Env):
    """Episodes never end; observations are random, in float64."""

    action_space = spaces.Box(-1.0, 1.0, (2,))

    def __init__(self, scale: float = 1.0) -> None:
        self.observation_space = spaces.Box(-np.inf, np.inf, (3,), np.float64)
        self.scale = scale
        self.random = np.random.default_rng(0)

    def reset(self, *, seed=None, options=None):
        return self.observe(), {}

    def step(self, action):
        assert np.geterr()["under"] == self.expected
        return self.observe(), 1.0 + float(action[0]), False, False, {}

    def observe(self):
        self.expected = np.geterr()["under"]
        return self.scale * self.random.uniform(-1.0, 1.0, 3)


class GeneralPolicy(MlpPolicy):
    """A policy that the fast loop does not know."""

    def forward(self, *args, **kwargs):
        return super().forward(*args, **kwargs)


CASES = {
    "far decay": ({}, {"gamma": 0.5, "n_steps": 2048}),
    "nearer decay": ({}, {"gamma": 0.9, "gae_lambda": 0.8, "n_steps": 4096}),
    "defaults on a long rollout": ({}, {"n_steps": 16384}),
    "tiny observations": ({"scale": 1e-42}, {}),
    "observations that are 0 in float32": ({"scale": 1e-300}, {}),
    "tiny noise": ({}, {"policy_kwargs": {"log_std_init": -97.0}}),
}


@pytest.mark.parametrize(
    ("case", "policy"),
    [*((case, "MlpPolicy") for case in CASES), ("far decay", GeneralPolicy)],
)  # SB3's loop and buffer underflow by themselves on tiny numbers, and take long for long rollouts
def test_parameters_are_those_without_the_setting(case, policy):
    of_env, settings = CASES[case]
    settings = {"n_steps": 64, "batch_size": 64, "n_critic_updates": 2, "seed": 0, "device": "cpu"} | settings

    def learned() -> dict[str, bytes]:
        return parameters_of(TRPO(policy, Endless(**of_env), **settings).learn(settings["n_steps"]))

    without = learned()
    with raising():
        assert learned() == without


def test_discrete_choices_are_sampled_alike():
    class Choices(Endless):
        action_space = spaces.MultiDiscrete([3, 4])

    def learned() -> dict[str, bytes]:
        return parameters_of(TRPO("MlpPolicy", Choices(), n_steps=64, batch_size=64, seed=0, device="cpu").learn(128))

    without = learned()
    with raising():
        assert learned() == without


def test_advantages_of_an_endless_episode_are_the_geometric_sum():
    """A constant error of 1 at each step has the advantage ``(1 - c^n) / (1 - c)``, n steps before the end."""
    gamma, gae_lambda, n_steps = 0.9, 0.8, 4096
    buffer = RolloutBuffer(n_steps, Endless().observation_space, Endless.action_space, gamma=gamma, gae_lambda=gae_lambda)
    buffer.rewards[:] = 1.0
    with raising():
        compute_advantages(buffer, np.zeros(1, np.float32), np.zeros(1, bool))
    n = np.arange(n_steps, 0, -1.0)
    expected = (1.0 - np.exp(n * np.log(gamma * gae_lambda))) / (1.0 - gamma * gae_lambda)
    np.testing.assert_allclose(buffer.advantages[:, 0], expected, rtol=1e-6)


def test_moments_of_nearly_equal_means_are_added():
    before = Moments(np.array([0.0]), np.array([1.0]), 10.0)
    with raising():
        between = added(before, Moments(np.array([1e-200]), np.array([1.0]), 20.0))
    assert between is not None
    np.testing.assert_allclose([between.mean[0], between.var[0], between.n], [2e-200, 1.0, 10.0])


def test_casting_to_what_policies_see():
    assert as_float32(np.array([1e39, -1e39, 1e-300, 0.5])).tolist() == [np.inf, -np.inf, 0.0, 0.5]
    same = np.zeros(3, np.float32)
    assert as_float32(same) is same
    with raising():
        assert as_float32(np.array([1e39, 1e-300])).tolist() == [np.inf, 0.0]


@pytest.mark.parametrize("complaint", ["raise", "warning"])
def test_quietly_computes_what_numpy_would_complain_about(complaint):
    with warnings.catch_warnings(), np.errstate(under="raise" if complaint == "raise" else "warn"):
        warnings.simplefilter("error")
        assert quietly(lambda: np.float32(1e-30) * np.array([1e-30], np.float32)).tolist() == [0.0]
        with pytest.raises(FloatingPointError if complaint == "raise" else RuntimeWarning):
            np.float32(1e-30) * np.array([1e-30], np.float32)


def test_quietly_lets_other_errors_pass():
    with pytest.raises(ValueError, match="mine"):
        quietly(lambda: (_ for _ in ()).throw(ValueError("mine")))
    assert th.is_grad_enabled()


def test_a_computation_is_repeated_only_if_numpy_complains():
    calls = []

    def product():
        calls.append(None)
        return np.float32(1e-30) * np.array([1e-30], np.float32)

    assert quietly_if_needed(product).tolist() == [0.0]
    assert len(calls) == 1
    with raising():
        assert quietly_if_needed(product).tolist() == [0.0]
    assert len(calls) == 3
