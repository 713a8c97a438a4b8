"""The controller between estimates and excesses."""

import numpy as np
import pytest

from sb3_trpo.constrained.feedback import RATE, Feedback


def test_a_first_estimate_is_taken_as_it_is():
    feedback = Feedback()
    feedback.observe(10.0, 25.0, False)
    assert feedback == Feedback(0.0, 10.0, 0.0)
    assert feedback.excess(10.0, 25.0) == -15.0


@pytest.mark.parametrize("gain", [0.05, 0.3, 1.0])
@pytest.mark.parametrize("noise", [0.0, 5.0])
def test_steps_that_do_less_than_they_predict_still_reach_the_limit(gain, noise):
    """Of each change that is asked for, only a share comes true, and the reward pushes the cost up all the time."""
    rng, limit, cost, feedback, seen = np.random.default_rng(0), 25.0, 60.0, Feedback(), []
    for _ in range(1000):
        estimate = max(0.0, cost + noise * rng.normal())
        feedback.observe(estimate, limit, was_out_of_reach=feedback.excess(estimate, limit) > 100.0)
        asked = np.clip(-feedback.excess(estimate, limit), -100.0, 100.0)
        cost = max(0.0, cost + gain * (0.3 * asked + 15.0))  # without the integral, it would settle at 75
        seen.append(cost)
    assert np.mean(seen[-500:]) == pytest.approx(limit - feedback.margin(limit), abs=3.0)
    assert np.mean(np.array(seen[-500:]) > limit + 0.1) <= 0.1


def test_the_moments_are_those_of_a_steady_series():
    rng, feedback = np.random.default_rng(0), Feedback()
    means, variances = [], []
    for _ in range(5000):
        feedback.observe(20.0 + 3.0 * rng.normal(), 25.0, False)
        means.append(feedback.mean)
        variances.append(feedback.variance)
    assert np.mean(means) == pytest.approx(20.0, abs=0.2)
    # The running mean varies too, so that differences from it have 2 / (2 - RATE) times the variance of the series.
    assert np.mean(variances) == pytest.approx(9.0 * (1.0 - RATE) * 2.0 / (2.0 - RATE), rel=0.04)


def test_the_margin_is_at_most_half_of_the_limit():
    feedback = Feedback(variance=1e6)
    assert feedback.margin(25.0) == 12.5
    assert feedback.margin(-10.0) == 5.0
    assert feedback.margin(0.0) == 0.0


def test_a_limit_out_of_reach_does_not_wind_the_integral_up():
    feedback = Feedback(integral=1.0, mean=100.0)
    feedback.observe(100.0, 25.0, True)
    assert feedback.integral == 1.0
    feedback.observe(100.0, 25.0, False)
    assert feedback.integral == pytest.approx(1.0 + RATE * 75.0)
    feedback = Feedback(integral=1.0, mean=20.0)
    feedback.observe(20.0, 25.0, True)
    assert feedback.integral == pytest.approx(0.5)


def test_the_integral_fades_below_the_aim():
    feedback = Feedback(integral=40.0)
    assert feedback.excess(25.0, 25.0) == 40.0
    assert feedback.excess(0.0, 25.0) == -25.0
    assert feedback.excess(30.0, 25.0) == 45.0
    assert Feedback(integral=40.0).excess(-0.1, 0.0) == pytest.approx(-0.1)
    assert Feedback(integral=40.0).excess(0.0, 0.0) == 40.0


def test_at_a_limit_of_zero_the_integral_ends_when_nothing_is_paid():
    feedback = Feedback()
    feedback.observe(5.0, 0.0, False)
    assert feedback.excess(5.0, 0.0) == 5.0 + feedback.integral > 5.0
    feedback.observe(0.0, 0.0, True)
    assert feedback.excess(0.0, 0.0) == 0.0
    feedback = Feedback(integral=3.0, mean=25.0)
    feedback.observe(25.0, 25.0, False)
    assert feedback.integral == 3.0
