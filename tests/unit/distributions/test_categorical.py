"""Categorical distributions: impossible options, and logits with a common offset."""

import math

import numpy as np
import pytest
import torch as th
from helpers.kinds import kl, metric_matrices
from stable_baselines3.common.distributions import CategoricalDistribution

from sb3_trpo.distributions.categorical import Categorical, ExponentialRace

INF = math.inf


def log(*probabilities):
    return th.tensor([probabilities], dtype=th.float64).log()


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (log(0.0, 0.5, 0.5), log(0.0, 0.25, 0.75), 0.5 * math.log(4 / 3)),
        (log(0.0, 0.5, 0.5), log(0.5, 0.25, 0.25), math.log(2)),
        (log(0.0, 1.0, 0.0), log(0.0, 1.0, 0.0), 0.0),
        (log(0.5, 0.5, 0.0), log(0.0, 1.0, 0.0), INF),
    ],
)
def test_impossible_options_of_the_old_policy_add_nothing_to_the_categorical_kl(old, new, expected):
    divergence = Categorical().kl((old, old), (new, new))
    assert divergence.tolist() == [pytest.approx(2.0 * expected)]


def test_impossible_options_have_no_metric():
    (product,) = Categorical().fisher_metric((log(0.0, 0.5, 0.5),))((th.tensor([[1.0, 2.0, -2.0]], dtype=th.float64),))
    assert product.isfinite().all()
    assert product[0, 0] == 0.0
    assert product[0, 2] < 0.0


def test_masked_option_of_sb3s_categorical_changes_neither_kl_nor_metric():
    masked, plain = (CategoricalDistribution(n) for n in (3, 2))
    old, new = th.tensor([[-INF, 0.3, -0.4]], dtype=th.float64), th.tensor([[-INF, -0.5, 0.2]], dtype=th.float64)
    divergence = kl(masked.proba_distribution(old), CategoricalDistribution(3).proba_distribution(new))
    expected = kl(plain.proba_distribution(old[:, 1:]), CategoricalDistribution(2).proba_distribution(new[:, 1:]))
    th.testing.assert_close(divergence, expected)
    matrices = metric_matrices(masked.proba_distribution(old))
    th.testing.assert_close(matrices[:, 1:, 1:], metric_matrices(plain.proba_distribution(old[:, 1:])))
    assert not matrices[:, 0].any()


@pytest.mark.parametrize("offset", [100.0, 1e4])
def test_a_common_offset_of_the_logits_changes_no_frequency(offset):
    probabilities = th.tensor([0.1, 0.2, 0.7])
    race = ExponentialRace((probabilities.log() + offset).repeat(200_000, 1))
    race.draw()
    counts = np.bincount(race.actions(), minlength=3)
    assert np.abs(counts / 200_000 - probabilities.numpy()).max() < 0.005
