"""Actions drawn as SB3's distributions draw them: the same ones, and the generator left alike."""

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.distributions import (
    BernoulliDistribution,
    CategoricalDistribution,
    DiagGaussianDistribution,
    MultiCategoricalDistribution,
)

from sb3_trpo.distributions.sampling import DRAWS

CASES = {
    "gaussian": (DiagGaussianDistribution(6), 6),
    "gaussian of 20": (DiagGaussianDistribution(20), 20),
    "choice": (CategoricalDistribution(5), 5),
    "choices": (MultiCategoricalDistribution([2, 3, 4]), 9),
    "bits": (BernoulliDistribution(3), 3),
}


def outputs(width: int, n_rows: int, scale: float) -> th.Tensor:
    return scale * th.randn(n_rows, width, generator=th.Generator().manual_seed(n_rows))


@pytest.mark.parametrize("n_rows", [1, 2, 16, 1000])
@pytest.mark.parametrize("scale", [0.1, 3.0])
@pytest.mark.parametrize(("distribution", "width"), CASES.values(), ids=CASES)
def test_the_draws_are_sb3s_bit_for_bit(distribution, width, scale, n_rows):
    output, log_std = th.empty(n_rows, width), None
    arguments = (output,)
    if isinstance(distribution, DiagGaussianDistribution):
        log_std = th.linspace(-1.0, 0.5, width)
        arguments = (output, log_std)
    draw = DRAWS[type(distribution)](distribution, output, log_std)
    for seed in range(5):
        output.copy_(outputs(width, n_rows, scale) + seed)
        th.manual_seed(seed)
        ours, state = draw(), th.get_rng_state()
        th.manual_seed(seed)
        theirs = distribution.proba_distribution(*arguments).get_actions()
        assert np.array_equal(ours, theirs.numpy())
        assert th.equal(state, th.get_rng_state())


def test_a_standard_deviation_written_in_place_counts_at_the_next_draw():
    output, log_std = th.zeros(1000, 2), th.zeros(2)
    draw = DRAWS[DiagGaussianDistribution](DiagGaussianDistribution(2), output, log_std)
    draw()
    log_std.data.fill_(2.0)
    assert draw().std() == pytest.approx(np.exp(2.0), rel=0.1)


@pytest.mark.parametrize("offset", [100.0, 1e4])
def test_a_common_offset_of_the_logits_changes_no_frequency(offset):
    probabilities = th.tensor([0.1, 0.2, 0.7])
    output = (probabilities.log() + offset).repeat(200_000, 1)
    counts = np.bincount(DRAWS[CategoricalDistribution](None, output, None)(), minlength=3)
    assert np.abs(counts / 200_000 - probabilities.numpy()).max() < 0.005
