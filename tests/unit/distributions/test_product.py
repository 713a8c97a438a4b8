"""A product of distributions: its probabilities are those of the choice and of the parts that are active, and add up to 1."""

from copy import copy

import pytest
import torch as th
from helpers.hybrid import ACTIVITIES, log_probs, of_choices, outcomes
from stable_baselines3.common.distributions import (
    BernoulliDistribution,
    CategoricalDistribution,
    DiagGaussianDistribution,
)

from sb3_trpo.distributions.product import ProductDistribution


@pytest.mark.parametrize(("activities", "n_outcomes"), [(ACTIVITIES, (2 + 3 + 2) * 2), (None, 3 * 2 * 3 * 2)])
def test_probabilities_of_all_outcomes_add_up_to_1_and_give_the_entropy(activities, n_outcomes):
    distribution = of_choices(0, activities)
    actions = outcomes(distribution)
    assert len(actions) == n_outcomes
    log_prob = log_probs(distribution, actions)
    th.testing.assert_close(log_prob.exp().sum(0), th.ones(4, dtype=th.float64))
    th.testing.assert_close(-(log_prob.exp() * log_prob).sum(0), distribution.entropy())


def test_parts_that_are_not_active_change_nothing():
    distribution = of_choices(0)
    ones, twos = th.tensor([[1.0, 0.0, 0.0, 2.0, 1.0], [1.0, 1.0, 0.0, 2.0, 1.0]]).double()
    assert th.equal(*log_probs(distribution, th.stack([ones, twos])))
    other = twos.clone()
    other[3] = 1.0
    assert not log_probs(distribution, th.stack([twos, other])).diff(dim=0).eq(0.0).any()


def test_a_choice_is_learned_from_what_its_parameters_do_not_matter_to():
    """The log-probability of an action has no gradient in the parameters of the other options."""
    output = th.zeros(1, 10, requires_grad=True)
    distribution = of_choices(0, n=1)
    log_prob = distribution.proba_distribution(output).log_prob(th.tensor([[1.0, 1.0, 0.0, 2.0, 1.0]]))
    (gradient,) = th.autograd.grad(log_prob.sum(), output)
    choice, inactive, active, always = th.split(gradient[0], distribution.n_outputs)
    assert choice.any()
    assert active.any()
    assert always.any()
    assert not inactive.any()


def mixed() -> ProductDistribution:
    made = ProductDistribution(
        [DiagGaussianDistribution(2), CategoricalDistribution(3), BernoulliDistribution(2), DiagGaussianDistribution(1)],
        [2, 1, 2, 1],
        log_std_init=-0.5,
    )
    made.layer, made.log_std = made.proba_distribution_net(5)
    return made


def test_the_last_layer_has_the_outputs_of_all_parts_and_one_parameter_for_all_gaussians():
    th.manual_seed(0)
    distribution = mixed()
    th.manual_seed(0)
    own = [th.nn.Linear(5, width) for width in (2, 3, 2, 1)]
    assert th.equal(distribution.layer.weight, th.cat([layer.weight for layer in own]))
    assert th.equal(distribution.layer.bias, th.cat([layer.bias for layer in own]))
    assert distribution.log_std.tolist() == [-0.5] * 3


def test_samples_are_those_of_the_parts_in_their_order():
    distribution = mixed()
    output, log_std = th.randn(6, 8), th.tensor([0.1, 0.2, 0.3])
    th.manual_seed(1)
    actions = distribution.proba_distribution(output, log_std).get_actions()
    assert (actions.shape, actions.dtype) == ((6, 6), th.float32)
    th.manual_seed(1)
    first = DiagGaussianDistribution(2).proba_distribution(output[:, :2], log_std[:2]).sample()
    choice = CategoricalDistribution(3).proba_distribution(output[:, 2:5]).sample()
    bits = BernoulliDistribution(2).proba_distribution(output[:, 5:7]).sample()
    last = DiagGaussianDistribution(1).proba_distribution(output[:, 7:], log_std[2:]).sample()
    assert th.equal(actions, th.cat([first, choice[:, None], bits, last], dim=1))


def test_the_mode_is_the_most_likely_of_each_part():
    output = th.tensor([[0.3, -0.4, 0.0, 2.0, 1.0, 3.0, -3.0, 5.0]])
    mode = mixed().actions_from_params(output, th.zeros(3), deterministic=True)
    assert th.equal(mode, th.tensor([[0.3, -0.4, 1.0, 1.0, 0.0, 5.0]]))


def test_a_copy_keeps_its_parameters():
    distribution = of_choices(0)
    before = copy(distribution)
    expected = before.entropy()
    distribution.proba_distribution(th.zeros(4, 10, dtype=th.float64))
    assert th.equal(before.entropy(), expected)
    assert not th.equal(distribution.entropy(), expected)


def test_sampling_and_evaluating_at_once_agree():
    th.manual_seed(0)
    actions, log_prob = mixed().log_prob_from_params(th.randn(3, 8), th.zeros(3))
    assert actions.shape == (3, 6)
    assert log_prob.shape == (3,)


class NoClosedForm(DiagGaussianDistribution):
    def entropy(self):
        return None


def test_without_an_entropy_of_a_part_there_is_none():
    made = ProductDistribution([CategoricalDistribution(2), NoClosedForm(1)], [1, 1])
    made.proba_distribution_net(1)
    assert made.proba_distribution(th.zeros(2, 3), th.zeros(1)).entropy() is None
