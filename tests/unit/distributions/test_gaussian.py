"""Gaussian distributions: what a small step, squashing and a changed standard deviation do."""

import numpy as np
import pytest
import torch as th
from helpers.kinds import kl
from stable_baselines3.common.distributions import SquashedDiagGaussianDistribution

from sb3_trpo.distributions.gaussian import Gaussian, GaussianSampler


def test_squashing_leaves_the_kl_as_it_is():
    old, new = (squashed(*parameters) for parameters in ((0.3, -0.5), (-0.2, 0.1)))
    u = th.linspace(-8.0, 8.0, 4001, dtype=th.float64)[:, None]
    actions, slope = u.tanh(), 1.0 - u.tanh().square()
    old_log, new_log = (each.log_prob(actions, u) for each in (old, new))
    integral = th.trapezoid(old_log.exp() * (old_log - new_log) * slope[:, 0], u[:, 0])
    th.testing.assert_close(kl(old, new), integral[None], rtol=1e-3, atol=0.0)


def squashed(mean, log_std):
    mean, log_std = th.tensor([mean, log_std], dtype=th.float64).view(2, 1, 1)
    return SquashedDiagGaussianDistribution(1).proba_distribution(mean, log_std)


@pytest.mark.parametrize("change", [1e-1, 1e-2, 1e-3, 1e-4, 1e-5])
def test_gaussian_kl_of_a_small_step_keeps_its_digits_in_float32(change):
    std = th.rand((1000, 1), generator=th.Generator().manual_seed(0)) + 0.5
    mean = th.zeros_like(std)
    for old, new in [((mean, std), (mean, std * (1.0 + change))), ((mean, std), (mean + change * std, std))]:
        single = Gaussian().kl(old, new)
        double = Gaussian().kl(tuple(z.double() for z in old), tuple(z.double() for z in new))
        assert single.dtype is th.float32
        assert ((single - double).abs() <= 8 * th.finfo(th.float32).eps * double.sqrt()).all()


def test_a_standard_deviation_written_in_place_counts_at_the_next_sample():
    log_std = th.zeros(2)
    sampler = GaussianSampler(th.zeros(1000, 2), log_std)
    for value in (0.0, 2.0):
        log_std.data.fill_(value)
        sampler.draw()
        assert sampler.actions().std() == pytest.approx(np.exp(value), rel=0.1)


@pytest.mark.parametrize("is_nan_from_the_start", [True, False])
def test_a_standard_deviation_that_is_nan_is_refused_before_anything_is_drawn(is_nan_from_the_start):
    log_std = th.full((2,), th.nan if is_nan_from_the_start else 0.0)
    sampler, state = GaussianSampler(th.zeros(3, 2), log_std), th.get_rng_state()
    log_std[1] = th.nan
    with pytest.raises(ValueError, match="gave NaN"):
        sampler.draw()
    assert th.equal(state, th.get_rng_state())
