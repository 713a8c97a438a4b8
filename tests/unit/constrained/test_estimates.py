"""The expected cost of an episode, on episodes whose cost is known."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from sb3_trpo.constrained.estimates import N_LENGTHS, StepCosts, covering, episode_costs, mean_length, newest


def rollout(costs, n_envs=1):
    return StepCosts(len(costs) * n_envs, (float(np.sum(costs)) * n_envs,), len(costs))


def test_whole_episodes_give_their_mean_cost():
    episodes = [[1, 0, 2], [0, 3], [1, 1, 1, 1]]
    estimate = episode_costs([rollout(np.concatenate(episodes))], mean_length([3, 2, 4], []))
    assert estimate.tolist() == pytest.approx([np.mean([sum(each) for each in episodes])])


@settings(max_examples=10)
@given(st.integers(0, 2**32))
def test_in_the_long_run_it_is_the_mean_cost_of_episodes_wherever_rollouts_are_cut(seed):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 20, size=4000)
    episodes = [rng.random(length) + (np.arange(length) == length - 1) * 5.0 for length in lengths]  # the end costs most
    start = rng.integers(0, 20)
    estimate = episode_costs([rollout(np.concatenate(episodes)[start:-7])], mean_length(lengths, []))
    assert estimate[0] == pytest.approx(np.mean([each.sum() for each in episodes]), rel=0.02)


def test_rollouts_shorter_than_an_episode_are_joined_until_they_cover_one():
    """All environments are in the same phase, and only the last quarter of an episode costs anything."""
    rollouts = [rollout([0.0] * 25, 8)] * 3 + [rollout([1.0] * 25, 8)]
    for _ in range(4):
        rollouts = [*rollouts[1:], rollouts[0]]
        chosen = covering(rollouts, 100.0)
        assert len(chosen) == 4
        assert episode_costs(chosen, 100.0).tolist() == [25.0]
    assert covering([rollout([0.0] * 500), rollout([1.0] * 100)], 100.0) == [rollout([1.0] * 100)]
    assert covering([rollout([1.0] * 10)], 100.0) == [rollout([1.0] * 10)]


def test_before_any_episode_has_ended_those_underway_count_as_they_are():
    assert mean_length([], [12.0]) == 12.0
    assert mean_length([3, 5], [100.0]) == 4.0


def test_lengths_of_the_newest_rollout_or_of_the_last_episodes():
    lengths = [*range(30)]
    assert newest(lengths, 2) == lengths[-N_LENGTHS:]
    assert newest(lengths, 25) == lengths[-25:]
    assert newest([4], 1) == [4]
