import math

import pytest
import torch as th
from helpers.oracle import dense_metric, joint_kl, torch_distributions
from hypothesis import given, settings, strategies as st
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

from sb3_trpo.distributions.argument_checks import unvalidated
from sb3_trpo.distributions.kinds import DiagonalGaussian, ProductOfBernoullis, ProductOfCategoricals, family

INF = math.inf


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
}


@pytest.fixture(params=MAKERS.values(), ids=MAKERS)
def make(request):
    return request.param


def kl(old, new):
    return family(old).kl(family(old).parameters(old), family(new).parameters(new))


def metric_matrices(distribution):
    """Apply the metric to every basis vector, shape ``(n, k, k)``."""
    kind = family(distribution)
    z = tuple(part.detach() for part in kind.parameters(distribution))
    sizes = [part.shape[1] for part in z]
    metric = kind.fisher_metric(z)
    bases = th.eye(sum(sizes), dtype=z[0].dtype).expand(len(z[0]), -1, -1)
    return th.stack([th.cat(metric(basis.split(sizes, 1)), 1) for basis in bases.unbind(1)], 2)


def random_raw(seed, n=6):
    return th.randn((n, 4), generator=th.Generator().manual_seed(seed), dtype=th.float64)


RAW = st.integers(1, 4).flatmap(lambda n: hnp.arrays("float64", (n, 4), elements=st.floats(-6.0, 6.0))).map(th.as_tensor)


def test_kl_is_torchs_summed_over_action_dimensions(make):
    old, new = make(random_raw(0)), make(random_raw(1))
    th.testing.assert_close(kl(old, new), joint_kl(torch_distributions(old), torch_distributions(new)))
    assert kl(old, new).shape == (6,)
    assert (kl(old, new) > 0.0).all()


def test_kl_has_the_gradient_of_torchs_in_the_new_distribution(make):
    old = make(random_raw(0))
    gradients = []
    for divergence in (kl, lambda old, new: joint_kl(torch_distributions(old), torch_distributions(new))):
        raw = random_raw(1).requires_grad_()
        gradients += th.autograd.grad(divergence(old, make(raw)).sum(), raw)
    th.testing.assert_close(*gradients)


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
def test_metric_is_symmetric_and_positive_semi_definite(raw):
    for name, make in MAKERS.items():
        matrices = metric_matrices(make(raw))
        assert th.allclose(matrices, matrices.mT, rtol=1e-12), name
        assert (th.linalg.eigvalsh(matrices).min(1).values >= -1e-12 * matrices.flatten(1).norm(dim=1)).all(), name


def test_parameters_keep_their_graph(make):
    raw = random_raw(0).requires_grad_()
    distribution = make(raw)
    parts = family(distribution).parameters(distribution)
    assert all(len(part) == len(raw) for part in parts)
    (gradient,) = th.autograd.grad(sum((part * part.detach()).sum() for part in parts), raw)
    assert gradient.any()


def test_squashing_leaves_the_kl_as_it_is():
    old, new = (make_scalar_squashed(*parameters) for parameters in ((0.3, -0.5), (-0.2, 0.1)))
    u = th.linspace(-8.0, 8.0, 4001, dtype=th.float64)[:, None]
    actions, slope = u.tanh(), 1.0 - u.tanh().square()
    old_log, new_log = (each.log_prob(actions, u) for each in (old, new))
    integral = th.trapezoid(old_log.exp() * (old_log - new_log) * slope[:, 0], u[:, 0])
    th.testing.assert_close(kl(old, new), integral[None], rtol=1e-3, atol=0.0)


def make_scalar_squashed(mean, log_std):
    mean, log_std = (th.full((1, 1), value, dtype=th.float64) for value in (mean, log_std))
    return SquashedDiagGaussianDistribution(1).proba_distribution(mean, log_std)


@pytest.mark.parametrize("change", [1e-1, 1e-2, 1e-3, 1e-4, 1e-5])
def test_gaussian_kl_of_a_small_step_keeps_its_digits_in_float32(change):
    std = th.rand((1000, 1), generator=th.Generator().manual_seed(0)) + 0.5
    mean = th.zeros_like(std)
    for old, new in [((mean, std), (mean, std * (1.0 + change))), ((mean, std), (mean + change * std, std))]:
        single = DiagonalGaussian().kl(old, new)
        double = DiagonalGaussian().kl(tuple(z.double() for z in old), tuple(z.double() for z in new))
        assert single.dtype is th.float32
        assert ((single - double).abs() <= 8 * th.finfo(th.float32).eps * double.sqrt()).all()


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
    divergence = ProductOfCategoricals().kl((old, old), (new, new))
    assert divergence.tolist() == [pytest.approx(2.0 * expected)]


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
    assert ProductOfBernoullis().kl((old,), (new,)).tolist() == [pytest.approx(expected)]


@pytest.mark.parametrize(
    ("kind", "z"),
    [(ProductOfCategoricals(), log(0.0, 0.5, 0.5)), (ProductOfBernoullis(), th.tensor([[-INF, INF, 0.0]], dtype=th.float64))],
    ids=["categorical", "bernoulli"],
)
def test_impossible_options_have_no_metric(kind, z):
    metric = kind.fisher_metric((z,))
    (product,) = metric((th.tensor([[1.0, 2.0, -2.0]], dtype=th.float64),))
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


class Tweaked(CategoricalDistribution):
    pass


class Unheard(Distribution):
    log_prob = entropy = sample = mode = actions_from_params = log_prob_from_params = proba_distribution_net = None
    proba_distribution = None


@pytest.mark.parametrize("distribution", [object.__new__(Unheard), 3], ids=["Unheard", "int"])
def test_unknown_distributions_are_refused_by_name(distribution):
    with pytest.raises(TypeError, match=type(distribution).__name__) as caught:
        family(distribution)
    assert "DiagGaussianDistribution" in str(caught.value)
    assert "register" in str(caught.value)


def test_subclasses_are_of_their_bases_family():
    assert isinstance(family(Tweaked(2)), ProductOfCategoricals)


def test_other_distributions_can_join():
    class Joined(Unheard):
        pass

    kind = object()
    family.register(Joined)(lambda distribution: kind)
    assert family(object.__new__(Joined)) is kind


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("error", [None, KeyboardInterrupt], ids=["normal", "exception"])
def test_unvalidated_accepts_nan_inside_and_restores_the_setting(before, error, monkeypatch):
    monkeypatch.setattr(th.distributions.Distribution, "_validate_args", before)
    try:
        with unvalidated():
            assert th.distributions.Normal(th.tensor(math.nan), th.tensor(-1.0)).loc.isnan()
            if error:
                raise error
    except KeyboardInterrupt:
        assert error is KeyboardInterrupt
    assert th.distributions.Distribution._validate_args is before
