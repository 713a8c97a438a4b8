import numpy as np
import pytest
from gymnasium import spaces
from helpers.envs import DICT, RandomEnv
from helpers.ranks import in_threads
from hypothesis import given, strategies as st
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecMonitor, VecNormalize

from sb3_trpo.parallel.running_statistics import Moments, StatisticsSync, added, merge, moments_of, statistics_of

NUMERIC_DICT = spaces.Dict({name: DICT[name] for name in ("vector", "image")})
SHAPES = st.sampled_from([(), (1,), (3,), (2, 2)])
LENGTHS = st.lists(st.integers(0, 40), max_size=4)


def base_env(space=DICT["vector"]):
    return DummyVecEnv([lambda: RandomEnv(space)] * 2)


def observations(seed, n, shape, scale=1.0, center=0.0):
    return np.random.default_rng(seed).normal(center, scale, (n, *shape))


def statistics_after(shape, *batches):
    statistics = RunningMeanStd(shape=shape)
    for batch in batches:
        if len(batch):
            statistics.update(batch)
    return statistics


SEEDS = st.integers(0, 2**32 - 1)
RANKS = st.lists(LENGTHS, min_size=1, max_size=4)


@given(SHAPES, SEEDS, st.integers(0, 500), RANKS, st.floats(0.01, 100.0), st.floats(-100.0, 100.0))
def test_merged_parts_are_as_if_one_rank_had_observed_everything(shape, seed, n_past, lengths, scale, center):
    past = observations(seed, n_past, shape)
    batches = [
        [observations((seed, rank, index), n, shape, scale, center) for index, n in enumerate(of_rank)]
        for rank, of_rank in enumerate(lengths)
    ]
    merged = statistics_after(shape, past)
    before = moments_of(merged)
    parts = [added(before, moments_of(statistics_after(shape, past, *of_rank))) for of_rank in batches]
    one = statistics_after(shape, past, *(each for of_rank in batches for each in of_rank))
    merge(merged, before, parts)
    size = np.square(one.mean) + one.var
    np.testing.assert_allclose(merged.count, one.count, rtol=1e-9)
    np.testing.assert_array_less(np.abs(merged.mean - one.mean), 1e-9 * np.sqrt(size) + 1e-300)
    np.testing.assert_array_less(np.abs(merged.var - one.var), 1e-9 * size + 1e-300)


@given(SHAPES, SEEDS, st.integers(1, 100), st.integers(1, 100))
def test_the_moments_of_new_observations_are_recovered(shape, seed, n_past, n):
    past, new = observations(seed, n_past, shape), observations(seed + 1, n, shape)
    part = added(moments_of(statistics_after(shape, past)), moments_of(statistics_after(shape, past, new)))
    np.testing.assert_allclose(part.n, n, rtol=1e-9)
    np.testing.assert_allclose(part.mean, new.mean(0), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(part.var, new.var(0), rtol=1e-9, atol=1e-9)


@given(SEEDS, st.floats(-1e6, 1e6), st.integers(1, 1000))
def test_a_variance_is_never_negative(seed, value, n_past):
    statistics = statistics_after((), observations(seed, n_past, ()))
    before = moments_of(statistics)
    statistics.update(np.array([value]))
    assert added(before, moments_of(statistics)).var >= 0.0


@pytest.mark.parametrize("n_ranks", [0, 1, 3])
def test_without_observations_every_bit_stays(n_ranks):
    statistics = statistics_after((3,), observations(0, 17, (3,)))
    before = moments_of(statistics)
    bits = before.mean.tobytes(), before.var.tobytes(), before.n
    parts = [added(before, moments_of(statistics))] * n_ranks
    assert parts == [None] * n_ranks
    merge(statistics, before, parts)
    assert (statistics.mean.tobytes(), statistics.var.tobytes(), statistics.count) == bits


def test_all_ranks_merge_to_the_same_bits():
    def collect(communicator):
        rank, vec_env = communicator.rank, VecNormalize(base_env())
        vec_env.obs_rms.update(observations(0, 9 + rank, vec_env.observation_space.shape))
        sync = StatisticsSync(vec_env, communicator)
        sync.take_from_first_rank()
        n_first = vec_env.obs_rms.count
        vec_env.obs_rms.update(observations(rank, 5 + rank, vec_env.observation_space.shape))
        sync.merge(communicator.gather_objects(sync.observed()))
        assert sync.observed() == [None, None]
        return n_first, vec_env.obs_rms.mean.tobytes(), vec_env.obs_rms.var.tobytes(), vec_env.obs_rms.count

    first, second = in_threads(2, collect)
    assert first == second
    assert first[0] == pytest.approx(9, abs=1e-3)  # SB3 starts from 1e-4
    assert first[-1] == pytest.approx(9 + 5 + 6, abs=1e-3)


def test_moments_do_not_change_with_later_observations():
    statistics = statistics_after((3,), observations(0, 9, (3,)))
    read = moments_of(statistics)
    bits = read.mean.tobytes(), read.var.tobytes(), read.n
    statistics.update(observations(1, 5, (3,)))
    assert (read.mean.tobytes(), read.var.tobytes(), read.n) == bits


def test_what_vec_normalize_normalises_has_statistics():
    assert statistics_of(base_env()) == statistics_of(VecMonitor(base_env())) == []
    vec_env = VecNormalize(base_env())
    assert statistics_of(VecFrameStack(vec_env, 2)) == [vec_env.obs_rms, vec_env.ret_rms]
    vec_env = VecNormalize(base_env(NUMERIC_DICT), norm_obs_keys=["vector", "image"])
    assert statistics_of(vec_env) == [vec_env.obs_rms["vector"], vec_env.obs_rms["image"], vec_env.ret_rms]
    inner = VecNormalize(base_env(), norm_reward=False)
    outer = VecNormalize(inner, norm_obs=False)
    assert statistics_of(outer) == [outer.ret_rms, inner.obs_rms, inner.ret_rms]


def test_moments_of_nearly_equal_means_are_added():
    before = Moments(np.array([0.0]), np.array([1.0]), 10.0)
    with np.errstate(all="raise"):
        between = added(before, Moments(np.array([1e-200]), np.array([1.0]), 20.0))
    assert between is not None
    np.testing.assert_allclose([between.mean[0], between.var[0], between.n], [2e-200, 1.0, 10.0])
