"""What holds of every kind of distribution: its KL, its metric, its head and its samples are those of SB3 and torch."""

from typing import NamedTuple

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from helpers.kinds import kl, metric_matrices
from helpers.oracle import dense_metric, joint_kl, torch_distributions
from hypothesis import example, given, settings, strategies as st
from hypothesis.extra import numpy as hnp
from stable_baselines3.common.distributions import (
    BernoulliDistribution,
    CategoricalDistribution,
    DiagGaussianDistribution,
    Distribution,
    MultiCategoricalDistribution,
    SquashedDiagGaussianDistribution,
    StateDependentNoiseDistribution,
)

from sb3_trpo.distributions.beta import BetaDistribution
from sb3_trpo.distributions.product import Activity, ProductDistribution
from sb3_trpo.distributions.registry import CORE_KINDS, kind_of

NORMALIZATION = 16 * th.finfo(th.float64).eps
"""
How far from 1 the probabilities of a choice add up to: torch subtracts logits below 8, each rounded to 8 eps.

``diag(p) - p p^T`` is positive semi-definite for a sum of at most 1. Beyond that, its smallest eigenvalue falls below 0 by
less than the excess.
"""


def bounded(n_actions):
    return spaces.Box(np.linspace(-3.0, 1.0, n_actions, dtype=np.float32), np.float32(2.0), (n_actions,))


def gsde(squash_output):
    log_std = th.tensor([[-1.0, 0.5], [0.3, -0.7]], dtype=th.float64)
    return lambda raw: StateDependentNoiseDistribution(2, squash_output=squash_output).proba_distribution(
        raw[:, :2], log_std, raw[:, 2:]
    )


MAKERS = {  # from four numbers per state
    "gaussian": lambda raw: DiagGaussianDistribution(2).proba_distribution(raw[:, :2], raw[:, 2:]),
    "gaussian-squashed": lambda raw: SquashedDiagGaussianDistribution(2).proba_distribution(raw[:, :2], raw[:, 2:]),
    "gsde": gsde(squash_output=False),
    "gsde-squashed": gsde(squash_output=True),
    "categorical": lambda raw: CategoricalDistribution(4).proba_distribution(raw),
    "multi-categorical": lambda raw: MultiCategoricalDistribution([2, 1, 1]).proba_distribution(raw),
    "multi-categorical-uneven": lambda raw: MultiCategoricalDistribution([1, 3]).proba_distribution(raw),
    "bernoulli": lambda raw: BernoulliDistribution(4).proba_distribution(raw),
    "beta": lambda raw: BetaDistribution(bounded(2)).proba_distribution(raw),
}


@pytest.fixture(params=MAKERS.values(), ids=MAKERS)
def make(request):
    return request.param


def random_raw(seed, n=6):
    return th.randn((n, 4), generator=th.Generator().manual_seed(seed), dtype=th.float64)


RAW = st.integers(1, 4).flatmap(lambda n: hnp.arrays("float64", (n, 4), elements=st.floats(-6.0, 6.0))).map(th.as_tensor)


def test_kl_is_torchs_summed_over_action_dimensions(make):
    old, new = make(random_raw(0)), make(random_raw(1))
    th.testing.assert_close(kl(old, new), joint_kl(torch_distributions(old), torch_distributions(new)))
    assert kl(old, new).shape == (6,)
    assert (kl(old, new) > 0.0).all()


def test_kl_has_the_gradient_of_torchs_in_the_new_distribution(make):
    old, raw = make(random_raw(0)), random_raw(1).requires_grad_()
    new = make(raw)
    divergences = kl(old, new), joint_kl(torch_distributions(old), torch_distributions(new))
    th.testing.assert_close(*(th.autograd.grad(each.sum(), raw, retain_graph=True) for each in divergences))


@settings(max_examples=30)
@given(RAW, st.data())
def test_kl_is_not_negative(raw, data):
    other = data.draw(hnp.arrays("float64", tuple(raw.shape), elements=st.floats(-6.0, 6.0)).map(th.as_tensor))
    for name, make in MAKERS.items():
        assert (kl(make(raw), make(other)) >= -1e-14).all(), name
        assert (kl(make(raw), make(raw)) == 0.0).all(), name


def test_metric_is_the_hessian_of_kl(make):
    distribution = make(random_raw(2))
    th.testing.assert_close(metric_matrices(distribution), dense_metric(torch_distributions(distribution)))


@settings(max_examples=30)
@given(RAW)
@example(th.tensor([[-5.481425524834049, 6.0, 4.404781210831164, 4.13982141349171]], dtype=th.float64))  # an excess of 5e-16
def test_metric_is_symmetric_and_positive_semi_definite(raw):
    for name, make in MAKERS.items():
        matrices = metric_matrices(make(raw))
        assert th.allclose(matrices, matrices.mT, rtol=1e-12), name
        smallest, size = th.linalg.eigvalsh(matrices).min(1).values, matrices.flatten(1).norm(dim=1)
        assert (smallest >= -1e-12 * size - NORMALIZATION).all(), name


def test_parameters_keep_their_graph(make):
    raw = random_raw(0).requires_grad_()
    distribution = make(raw)
    parts = kind_of(distribution, CORE_KINDS).parameters(distribution)
    assert all(len(part) == len(raw) for part in parts)
    (gradient,) = th.autograd.grad(sum((part * part.detach()).sum() for part in parts), raw)
    assert gradient.any()


def product(*activities):
    """Make a product of every kind of part, the last Gaussian wide enough for torch's vectorized noise."""
    parts = DiagGaussianDistribution(1), CategoricalDistribution(3), MultiCategoricalDistribution([1, 2])
    made = ProductDistribution([*parts, DiagGaussianDistribution(3)], [1, 1, 2, 3], activities)
    made.proba_distribution_net(1)
    return made


class Policy(NamedTuple):
    """What a head is made from."""

    action_dist: Distribution
    log_std: th.Tensor


HEADS = {
    "gaussian": (DiagGaussianDistribution(6), 6),
    "gaussian-20": (DiagGaussianDistribution(20), 20),
    "categorical": (CategoricalDistribution(5), 5),
    "multi-categorical": (MultiCategoricalDistribution([2, 3, 4]), 9),
    "multi-categorical-single": (MultiCategoricalDistribution([3]), 3),
    "bernoulli": (BernoulliDistribution(3), 3),
    "beta": (BetaDistribution(bounded(3)), 6),
    "beta-20": (BetaDistribution(bounded(20)), 40),
    "product": (product(Activity(1, (True, False, True)), None, None, Activity(1, (False, True, False))), 10),
}
heads = pytest.mark.parametrize(("distribution", "width"), HEADS.values(), ids=HEADS)


def head_of(distribution, width, dtype=th.float32):
    n_std = sum(getattr(distribution, "n_std", [width]))
    head = kind_of(distribution, CORE_KINDS).head(Policy(distribution, th.linspace(-1.0, 0.5, n_std, dtype=dtype)))
    assert head is not None
    return head


def outputs(width, n_rows, scale):
    return scale * th.randn(n_rows, width, generator=th.Generator().manual_seed(n_rows))


@heads
def test_a_heads_derivatives_are_autograds_seen_through_the_metric(distribution, width):
    """``M J v`` and ``J^T M w``, for a head may leave out what the metric does not see."""
    head, kind = head_of(distribution, width, th.float64), kind_of(distribution, CORE_KINDS)
    output = outputs(width, 4, 1.0).double()
    inputs = (output, *head.parameters)
    d_inputs = tuple(th.randn_like(tensor) for tensor in inputs)

    def z(output, *parameters):
        return kind.parameters(head.with_parameters(parameters).distribution(output))

    at, dz = th.func.jvp(z, inputs, d_inputs)
    metric, derivative = kind.fisher_metric(at), head.linearize(output)
    th.testing.assert_close(metric(derivative.jvp(d_inputs[0], d_inputs[1:])), metric(dz))
    u = metric(tuple(th.randn_like(part) for part in at))
    of_output, of_parameters = derivative.vjp(u)
    _, pullback = th.func.vjp(z, *inputs)
    th.testing.assert_close((of_output, *of_parameters), pullback(u))


@heads
def test_a_heads_parameters_may_differ_from_state_to_state(distribution, width):
    head, output = head_of(distribution, width), outputs(width, 3, 1.0)
    rows = [th.stack([tensor, tensor + 1.0, tensor - 1.0]) for tensor in head.parameters]

    def z(parameters, output):
        return kind_of(distribution, CORE_KINDS).parameters(head.with_parameters(parameters).distribution(output))

    alone = [z([row[state] for row in rows], output[state : state + 1]) for state in range(3)]
    th.testing.assert_close(z(rows, output), tuple(map(th.cat, zip(*alone, strict=True))))


@pytest.mark.parametrize("n_rows", [1, 2, 16, 1000])
@pytest.mark.parametrize("scale", [0.1, 3.0])
@heads
def test_samples_are_sb3s_bit_for_bit(distribution, width, scale, n_rows):
    output = th.empty(n_rows, width)
    head = head_of(distribution, width)
    sampler = head.sampler(output)
    for seed in range(5):
        output.copy_(outputs(width, n_rows, scale) + seed)
        th.manual_seed(seed)
        sampler.draw()
        ours, again, state = sampler.actions(), sampler.actions(), th.get_rng_state()
        th.manual_seed(seed)
        theirs = distribution.proba_distribution(output, *head.parameters).get_actions().numpy()
        assert np.array_equal(ours.reshape(theirs.shape), theirs)
        assert np.array_equal(ours, again)
        assert th.equal(state, th.get_rng_state())
