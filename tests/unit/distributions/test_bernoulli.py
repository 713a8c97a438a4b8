"""Bits that are certain."""

import math

import pytest
import torch as th

from sb3_trpo.distributions.bernoulli import Bernoulli

INF = math.inf


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (INF, INF, 0.0),
        (-INF, -INF, 0.0),
        (INF, 0.0, math.log(2)),
        (-INF, 0.0, math.log(2)),
        (1000.0, 900.0, 0.0),
        (-1000.0, 0.0, math.log(2)),
        (1000.0, -1000.0, 1000.0),
        (0.0, INF, INF),
    ],
)
def test_impossible_bits_of_the_old_policy_add_nothing_to_the_bernoulli_kl(old, new, expected):
    old, new = (th.tensor([[logit, 1.0]], dtype=th.float64) for logit in (old, new))
    assert Bernoulli().kl((old,), (new,)).tolist() == [pytest.approx(expected)]


def test_certain_bits_have_no_metric():
    (product,) = Bernoulli().fisher_metric((th.tensor([[-INF, INF, 0.0]], dtype=th.float64),))(
        (th.tensor([[1.0, 2.0, -2.0]], dtype=th.float64),)
    )
    assert product.tolist() == [[0.0, 0.0, -0.5]]
