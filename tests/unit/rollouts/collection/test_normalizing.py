"""VecNormalize in fewer calls: the same bits as SB3's, and left to SB3's where it cannot be."""

from __future__ import annotations

from copy import deepcopy
from itertools import product
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from helpers.envs import DICT, VECTOR
from helpers.rollouts import several
from hypothesis import given, strategies as st
from hypothesis.extra import numpy as arrays_of
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecNormalize

from sb3_trpo.rollouts.collection.normalizing import normalize_step, normalizes_arrays, update

SHAPES = arrays_of.array_shapes(min_dims=1, max_dims=3, max_side=5)


def state(statistics: RunningMeanStd) -> tuple[Any, ...]:
    return statistics.mean, statistics.var, statistics.count


def assert_same_bits(ours: Any, theirs: Any) -> None:
    for one, other in zip(ours, theirs, strict=True):
        assert np.asarray(one).dtype == np.asarray(other).dtype
        assert np.array_equal(one, other)


@given(
    values=st.sampled_from([np.float32, np.float64]).flatmap(
        lambda dtype: arrays_of.arrays(dtype, SHAPES, elements={"min_value": -1e4, "max_value": 1e4})
    ),
    count=st.sampled_from([1e-4, 1.0, 7.5, 1e7]),
)
def test_moments_are_updated_with_sb3s_bits(values, count):
    ours = RunningMeanStd(shape=values.shape[1:], epsilon=count)
    ours.mean, ours.var = ours.mean + 0.3, ours.var * 1.7
    theirs = deepcopy(ours)
    for factor in (1.0, -0.1):
        update(ours, values * values.dtype.type(factor))
        theirs.update(values * values.dtype.type(factor))
        assert_same_bits(state(ours), state(theirs))


def wrapped(dtype: type = np.float32, **settings: Any) -> VecNormalize:
    return VecNormalize(several(3, spaces.Box(-np.inf, np.inf, (2,), dtype)), clip_obs=1.0, clip_reward=0.5, **settings)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("flags", [*product([True, False], repeat=3)], ids=str)
def test_steps_have_sb3s_bits(flags, dtype, monkeypatch):
    training, norm_obs, norm_reward = flags
    ours = wrapped(dtype, training=training, norm_obs=norm_obs, norm_reward=norm_reward)
    theirs, generator = wrapped(dtype, training=training, norm_obs=norm_obs, norm_reward=norm_reward), np.random.default_rng(0)
    assert normalizes_arrays(ours)
    ours.reset(), theirs.reset()
    for step in range(6):
        observations = generator.normal(size=(3, 2)).astype(dtype) * 10.0 ** (step - 2)
        rewards, dones = generator.normal(size=3).astype(np.float32), np.array([step == 2, False, step > 3])
        infos = [{"terminal_observation": observations[i] + 1} if dones[i] and i else {} for i in range(3)]
        ended = deepcopy(infos)
        stepped = normalize_step(ours, (observations, rewards.copy(), dones, infos))
        monkeypatch.setattr(theirs.venv, "step_wait", lambda seen=(observations, rewards, dones, ended): seen)
        expected = theirs.step_wait()
        assert_same_bits(stepped[:3], expected[:3])
        assert stepped[0] is not observations
        for one, other in zip(infos, ended, strict=True):
            assert_same_bits(one.values(), other.values())
        if norm_obs:
            assert_same_bits(state(ours.obs_rms), state(theirs.obs_rms))
        assert_same_bits(state(ours.ret_rms), state(theirs.ret_rms))
        assert_same_bits([ours.returns, ours.old_obs, ours.old_reward], [theirs.returns, theirs.old_obs, theirs.old_reward])


class Own(VecNormalize):
    """Not SB3's."""


class OwnMoments(RunningMeanStd):
    """Not SB3's."""


def patched() -> VecNormalize:
    venv = wrapped()
    venv.normalize_obs = venv.normalize_obs  # type: ignore[method-assign]
    return venv


def with_own_moments(name: str) -> VecNormalize:
    venv = wrapped()
    setattr(venv, name, OwnMoments(shape=getattr(venv, name).mean.shape))
    return venv


@pytest.mark.parametrize(
    "make",
    [
        lambda: Own(several(2, VECTOR)),
        patched,
        lambda: with_own_moments("obs_rms"),
        lambda: with_own_moments("ret_rms"),
        lambda: VecNormalize(several(2, spaces.Box(-5, 5, (2,), np.int64))),
        lambda: VecNormalize(several(2, DICT), norm_obs_keys=["vector"]),
    ],
    ids=["subclass", "patched", "own moments", "own moments of returns", "integers", "dict"],
)
def test_anything_else_is_left_to_sb3(make):
    assert not normalizes_arrays(make())


def test_a_method_replaced_in_sb3s_class_is_called(monkeypatch):
    assert normalizes_arrays(wrapped())
    monkeypatch.setattr(VecNormalize, "_normalize_obs", lambda *_: None)
    assert not normalizes_arrays(wrapped())
