"""KL and metric of a product: from the definition of the divergence, by enumeration of all outcomes, and as its Hessian."""

import pytest
import torch as th
from gymnasium import spaces
from helpers.hybrid import ACTIVITIES, log_probs, of_choices, outcomes, true_kl
from helpers.kinds import kl
from stable_baselines3.common.distributions import CategoricalDistribution, DiagGaussianDistribution
from torch.autograd.functional import hessian, jacobian

from sb3_trpo.distributions.beta import BetaDistribution
from sb3_trpo.distributions.product import Activity, ProductDistribution
from sb3_trpo.distributions.product_kind import Product, split
from sb3_trpo.distributions.registry import CORE_KINDS, find_kind, kind_of


@pytest.mark.parametrize("activities", [ACTIVITIES, None])
def test_kl_is_the_sum_over_all_outcomes(activities):
    old, new = (of_choices(seed, activities) for seed in range(2))
    actions = outcomes(old)
    old_log, new_log = log_probs(old, actions), log_probs(new, actions)
    th.testing.assert_close(kl(old, new), (old_log.exp() * (old_log - new_log)).sum(0))
    th.testing.assert_close(kl(old, new), true_kl(old, new))
    assert th.equal(kl(old, old), th.zeros(4, dtype=th.float64))


def parameterized() -> ProductDistribution:
    """Make a choice of two options, each with a Gaussian of its own, and a Gaussian for both."""
    parts = [CategoricalDistribution(2), DiagGaussianDistribution(1), DiagGaussianDistribution(2), DiagGaussianDistribution(1)]
    made = ProductDistribution(parts, [1, 1, 2, 1], (None, Activity(0, (True, False)), Activity(0, (False, True)), None))
    made.proba_distribution_net(1)
    return made


def psi_at(x: th.Tensor) -> ProductDistribution:
    """Set the parameters: 6 outputs and 4 logarithms of standard deviations."""
    return parameterized().proba_distribution(x[:6].view(1, 6), x[6:])


def test_the_metric_is_the_hessian_of_the_kl_by_definition():
    x = th.randn(10, generator=th.Generator().manual_seed(0), dtype=th.float64)
    old = psi_at(x)
    kind = kind_of(old, CORE_KINDS)
    exact = hessian(lambda new: true_kl(old, psi_at(new)).sum(), x)
    z = kind.parameters(old)
    jacobians = jacobian(lambda new: kind.parameters(psi_at(new)), x)
    metric = kind.fisher_metric(z)
    products = [metric(tuple(each[..., column] for each in jacobians)) for column in range(10)]
    own = th.stack(
        [sum(th.einsum("ncx,nc->x", j, mdz) for j, mdz in zip(jacobians, product, strict=True)) for product in products]
    )
    th.testing.assert_close(own, exact)
    sizes = [len(each) for each in split(exact, [2, 1, 2, 1, 4])]
    assert sizes == [2, 1, 2, 1, 4]
    assert not exact[:2, 2:].any(), "the blocks of the parts are apart"


def test_a_product_with_a_part_of_no_known_kind_has_none():
    kinds = [kind for kind in CORE_KINDS if DiagGaussianDistribution not in kind.distributions]
    assert isinstance(find_kind(parameterized(), CORE_KINDS), Product)
    assert find_kind(parameterized(), kinds) is None


def test_a_subclass_of_the_product_has_no_head():
    class Own(ProductDistribution):
        pass

    class Policy:
        action_dist = Own([CategoricalDistribution(2)], [1])

    assert kind_of(Policy.action_dist, CORE_KINDS).head(Policy()) is None


def test_a_sequence_is_cut_into_pieces():
    assert split((1, 2, 3, 4), [1, 0, 3]) == [(1,), (), (2, 3, 4)]


def test_the_standard_deviations_of_beta_parts_are_logged_together():
    parts = [
        CategoricalDistribution(2),
        BetaDistribution(spaces.Box(-1.0, 1.0, (2,))),
        BetaDistribution(spaces.Box(0.0, 4.0, (1,))),
    ]
    made = ProductDistribution(parts, [1, 2, 1])
    made.proba_distribution_net(1)
    made.proba_distribution(th.zeros(3, 8))
    stds = kind_of(made, CORE_KINDS).spread(made)
    assert stds.shape == (3, 3)
    assert th.equal(stds[:, 2], made.parts[2].std()[:, 0])
    assert kind_of(parameterized(), CORE_KINDS).spread(parameterized()) is None
