import numpy as np
import pytest
from helpers.learning_runs import row
from scipy.stats import trim_mean

from benchmarks.learning import study


def test_an_interval_contains_its_estimate_and_the_iqm_ignores_outliers():
    scores = np.array([[1.0, 0.0], [2.0, 0.0], [3.0, 0.0], [1000.0, 8.0]])[:, None]
    values, low, high = study.intervals(study.iqm, scores)
    assert values.tolist() == [2.5, 0.0]
    for runs in (3, 6, 10):  # of 2 tasks, at 4 points
        scores_of_runs = np.random.default_rng(runs).normal(size=(runs, 2, 4))
        expected = trim_mean(scores_of_runs.reshape(-1, 4), 0.25)
        np.testing.assert_allclose(study.iqm(scores_of_runs), expected, rtol=1e-12)
    assert (low <= values).all()
    assert (values <= high).all()


def test_intervals_are_the_same_each_time():
    ours, peer = np.random.default_rng(0).normal(size=(2, 8, 1))

    def improvement(ours, peer):
        return np.array([ours.mean() - peer.mean()])

    for of, scores in ((study.iqm, [ours[:, None]]), (improvement, [ours, peer])):
        np.testing.assert_array_equal(study.intervals(of, *scores), study.intervals(of, *scores))


def test_probability_of_improvement_counts_pairs():
    rows = [row("Hopper-v5", "trpo", seed, float(mean)) for seed, mean in enumerate((1, 3, 5))]
    rows += [row("Hopper-v5", "sb3-contrib", seed, float(mean)) for seed, mean in enumerate((2, 4))]
    probability, low, high = study.probability_of_improvement(study.Study(rows), "Hopper-v5")
    assert probability == pytest.approx(3 / 6)  # (3, 2), (5, 2) and (5, 4) of six pairs
    assert 0.0 == low <= probability <= high == 1.0
    apart = [row("A-v0", label, seed, mean + seed) for label, mean in (("trpo", 9.0), ("sb3-contrib", 1.0)) for seed in (0, 1)]
    assert study.probability_of_improvement(study.Study(apart), "A-v0").tolist() == [1.0, 1.0, 1.0]


def test_curves_are_compared_where_all_runs_have_points():
    rows = [row("A-v0", "trpo", 0, 1.0, [[100, 1.0, 5.0], [200, 2.0, 9.0], [300, 3.0, 12.0]])]
    rows += [row("A-v0", "trpo", 1, 1.0, [[200, 4.0], [300, 5.0]]), row("A-v0", "trpo", 2, 1.0), row("A-v0", "trpo", 3)]
    expected = [[[200, 2.0, 9.0], [300, 3.0, 12.0]], [[200, 4.0, np.nan], [300, 5.0, np.nan]]]
    np.testing.assert_array_equal(study.curves(study.Study(rows), "A-v0", study.OURS), expected)


def test_time_to_a_level_is_that_of_the_first_point_that_reaches_it():
    curve = [[100, 1.0, 10.0], [200, 5.0, 20.0], [300, 4.0, 30.0]]
    assert study.seconds_to_reach({"curve": curve}, 4.5) == 20.0
    assert study.seconds_to_reach({"curve": curve}, 6.0) is None


def test_runs_without_times_are_left_out_where_it_matters():
    timed, resumed = row("A-v0", "trpo", 0, 1.0, [[100, 1.0, 10.0]]), row("A-v0", "trpo", 1, 1.0, [[100, 1.0]])
    assert study.uninterrupted([timed, resumed, row("A-v0", "trpo", 2)]) == [timed]


def test_returns_are_divided_by_the_mean_of_the_peer():
    rows = [row("A-v0", "trpo", seed, 10.0 + seed) for seed in range(3)] + [
        row("A-v0", "sb3-contrib", seed, 4.0 + 2 * seed) for seed in (0, 1)
    ]
    np.testing.assert_allclose(study.normalized(study.Study(rows), ["A-v0"], study.OURS, study.Scale())[:, 0], [2.0, 2.2, 2.4])


def test_a_random_policy_counts_as_0_and_the_mean_of_ppo_as_1():
    rows = [row("A-v0", "trpo", 0, -5.0), *(row("A-v0", "ppo", seed, mean) for seed, mean in enumerate((-16.0, -14.0)))]
    scale = study.Scale(study.PPO, {"A-v0": -25.0})
    assert study.normalized(study.Study(rows), ["A-v0"], study.OURS, scale).tolist() == [[2.0]]
    np.testing.assert_allclose(study.normalized(study.Study(rows), ["A-v0"], study.PPO, scale)[:, 0], [0.9, 1.1])


def test_a_profile_is_the_share_of_runs_above_each_level():
    share, low, high = study.profile(np.array([[0.5, 1.0], [1.5, 2.0]]), np.array([0.0, 0.5, 1.2, 3.0]))
    assert share.tolist() == [1.0, 0.75, 0.5, 0.0]
    assert (low <= share).all()
    assert (share <= high).all()


def test_runs_are_not_dropped_to_make_the_tasks_even():
    rows = [row(env, label, 0, 1.0) for env in ("A-v0", "B-v0") for label in ("trpo", "sb3-contrib")]
    with pytest.raises(ValueError, match="same shape"):
        study.normalized(study.Study([*rows, row("B-v0", "trpo", 1, 1.0)]), ["A-v0", "B-v0"], study.OURS, study.Scale())
