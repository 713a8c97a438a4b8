"""Advantages are standardized over all that an update uses, and noise is not taken for a signal."""

import copy

import numpy as np
import pytest
import torch as th
from helpers.buffers import filled
from helpers.envs import BOX_ACTION, VECTOR
from helpers.rollouts import assert_close
from hypothesis import given, settings, strategies as st
from stable_baselines3.common.buffers import RolloutBuffer

from sb3_trpo.parallel.communicator import Communicator
from sb3_trpo.rollouts.advantages import compute_advantages, moments, pooled, standardization
from sb3_trpo.rollouts.reader import TransitionReader


def standardized(buffer, every, size):
    reader = TransitionReader(buffer)
    chunks = reader.chunks(every, size)
    return chunks.with_advantages(*standardization(chunks.advantages, reader.returns))


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
@pytest.mark.parametrize("shift", [0.0, -3.0])
@pytest.mark.parametrize(("every", "chunk_size"), [(1, 100), (1, 5), (4, 2)])
def test_standardised_advantages_have_mean_0_and_standard_deviation_1_over_what_is_read(every, chunk_size, scale, shift):
    buffer = filled()
    buffer.advantages = (scale * (buffer.advantages + shift)).astype(np.float32)
    buffer.returns = buffer.advantages + scale * buffer.values
    chunks = standardized(buffer, every, chunk_size)
    advantages = th.cat([chunk.advantages for chunk in chunks]).double()
    assert float(advantages.mean()) == pytest.approx(0.0, abs=1e-5)
    assert float(advantages.std()) == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("level", [0.0, 1.0, -250.0, 1e6])
@pytest.mark.parametrize("chunk_size", [4, 100])
def test_advantages_that_differ_by_rounding_only_weigh_nothing(level, chunk_size):
    buffer = filled()
    last_digits = np.finfo(np.float32).eps * np.random.default_rng(0).integers(-2, 3, buffer.advantages.shape)
    buffer.advantages = (level + level * last_digits).astype(np.float32)
    buffer.returns = np.full_like(buffer.advantages, level)
    chunks = standardized(buffer, 1, chunk_size)
    assert all(not chunk.advantages.any() for chunk in chunks)


class Pair(Communicator):
    """One of two ranks; what the other one gathers is given, for a single message."""

    def __init__(self, *others) -> None:
        self.others = [*others]

    def gather(self, values):
        return th.stack((values, th.as_tensor(self.others.pop(0), dtype=values.dtype)))


@pytest.mark.parametrize("n_other", [1, 5, 40])
def test_moments_of_ranks_are_those_of_all_their_numbers_together(n_other):
    rng = np.random.default_rng(0)
    here, there = rng.normal(3.0, 2.0, 7), rng.normal(-5.0, 0.1, n_other)
    n, mean, squares = pooled(np.array([moments(here), moments(there)]))
    whole = np.concatenate([here, there])
    assert n == len(whole)
    assert mean == pytest.approx(whole.mean())
    assert squares == pytest.approx(whole.var() * len(whole))


def test_rounding_is_judged_by_the_largest_return_of_all_ranks():
    advantages = np.array([1.0, 1.0 + 1e-4], np.float32)
    for largest, is_noise in ((1.0, False), (1e4, True)):
        _, scale = standardization(advantages, np.ones(2, np.float32), Pair([*moments(advantages), largest]))
        assert (scale == 0.0) == is_noise


def test_a_single_advantage_has_no_spread():
    assert standardization(np.array([2.0], np.float32), np.array([2.0], np.float32)) == (2.0, 0.0)


UNIT = st.sampled_from([0.0, 1.0, 0.99, 0.95]) | st.floats(0.0, 1.0)


@settings(max_examples=150)
@given(st.integers(1, 70), st.integers(1, 4), UNIT, UNIT, st.sampled_from([0.0, 0.1, 0.5, 1.0]), st.integers(0, 2**32 - 1))
def test_advantages_are_those_of_the_buffers_own_method(n_steps, n_envs, gamma, gae_lambda, ending, seed):
    generator = np.random.default_rng(seed)
    ours = RolloutBuffer(n_steps, VECTOR, BOX_ACTION, "cpu", gae_lambda, gamma, n_envs)
    for name in ("rewards", "values"):
        getattr(ours, name)[:] = generator.normal(size=(n_steps, n_envs))
    ours.episode_starts[:] = generator.random((n_steps, n_envs)) < ending
    last_values = generator.normal(size=n_envs).astype(np.float32)
    last_dones = generator.random(n_envs) < ending
    theirs = copy.deepcopy(ours)
    theirs.compute_returns_and_advantage(th.from_numpy(last_values), last_dones)
    compute_advantages(ours, last_values.copy(), last_dones)
    for name in ("rewards", "values", "episode_starts"):
        assert np.array_equal(getattr(ours, name), getattr(theirs, name))
    for name in ("advantages", "returns"):
        assert_close(getattr(ours, name), getattr(theirs, name), 1e-5)
