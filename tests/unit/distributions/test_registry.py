"""Finding the kind of a distribution, and adding kinds."""

import pytest
from helpers.envs import BOX_ACTION, VECTOR, RandomEnv
from helpers.runs import parameters_of
from stable_baselines3.common.distributions import (
    CategoricalDistribution,
    DiagGaussianDistribution,
    Distribution,
    MultiCategoricalDistribution,
)

from sb3_trpo import TRPO, MlpPolicy
from sb3_trpo.distributions.categorical import Categorical
from sb3_trpo.distributions.gaussian import Gaussian, GaussianHead
from sb3_trpo.distributions.registry import CORE_KINDS, find_kind, kind_of
from sb3_trpo.networks.plain_network import read_networks
from sb3_trpo.numerics.trust_region import Outcome
from sb3_trpo.rollouts.collection.fast_collector import FastCollector


class Tweaked(CategoricalDistribution):
    pass


class Unknown(Distribution):
    log_prob = entropy = sample = mode = actions_from_params = log_prob_from_params = proba_distribution_net = None
    proba_distribution = None


class KnowsUnknown(Categorical):
    distributions = (Unknown,)


@pytest.mark.parametrize("distribution", [object.__new__(Unknown), 3], ids=["Unknown", "int"])
def test_an_unknown_distribution_is_refused_by_name_with_advice_on_adding_it(distribution):
    assert find_kind(distribution, CORE_KINDS) is None
    with pytest.raises(TypeError, match=type(distribution).__name__) as caught:
        kind_of(distribution, CORE_KINDS)
    assert "DiagGaussianDistribution" in str(caught.value)
    assert "distribution_kinds = (*TRPO.distribution_kinds, MyKind())" in str(caught.value)


def test_a_subclass_has_the_kind_of_its_base():
    assert isinstance(kind_of(Tweaked(2), CORE_KINDS), Categorical)


def test_a_kind_that_is_added_is_found():
    kind = KnowsUnknown()
    assert kind_of(object.__new__(Unknown), (*TRPO.distribution_kinds, kind)) is kind


def test_the_kind_of_the_nearest_base_counts_and_then_the_last_one():
    class OfTweaked(Categorical):
        distributions = (Tweaked,)

    class OfCategorical(Categorical):
        distributions = (CategoricalDistribution,)

    of_tweaked, of_categorical = OfTweaked(), OfCategorical()
    kinds = (of_tweaked, *CORE_KINDS, of_categorical)
    assert kind_of(Tweaked(2), kinds) is of_tweaked
    assert kind_of(CategoricalDistribution(2), kinds) is of_categorical
    assert kind_of(MultiCategoricalDistribution([2]), kinds) in CORE_KINDS


class OwnGaussian(DiagGaussianDistribution):
    pass


class OwnPolicy(MlpPolicy):
    def _build(self, lr_schedule):
        self.action_dist = OwnGaussian(2)
        super()._build(lr_schedule)

    def _get_action_dist_from_latent(self, latent_pi):
        return self.action_dist.proba_distribution(self.action_net(latent_pi), self.log_std)


class OwnKind(Gaussian):
    distributions = (OwnGaussian,)
    policies = (OwnPolicy,)

    def head(self, policy):
        return GaussianHead(policy.action_dist, policy.log_std) if type(policy.action_dist) is OwnGaussian else None


class OwnTRPO(TRPO):
    distribution_kinds = (*TRPO.distribution_kinds, OwnKind())


def trained(algorithm, policy):
    model = algorithm(policy, RandomEnv(VECTOR, BOX_ACTION), n_steps=32, batch_size=16, seed=0, device="cpu")
    return model.learn(64)


def test_a_users_own_kind_is_trained_by_the_fast_path_with_the_same_bits(monkeypatch):
    collected, collect = [], FastCollector.collect
    monkeypatch.setattr(FastCollector, "collect", lambda *arguments: collected.append(None) or collect(*arguments))
    own = trained(OwnTRPO, OwnPolicy)
    assert len(collected) == 2
    assert read_networks(own.policy, own.distribution_kinds) is not None
    assert parameters_of(own) == parameters_of(trained(TRPO, "MlpPolicy"))


def test_a_policy_with_methods_that_its_kind_does_not_know_is_trained_by_autograd():
    assert read_networks(OwnPolicy(VECTOR, BOX_ACTION, lambda _: 1e-3)) is None
    assert trained(TRPO, OwnPolicy).policy_outcome is Outcome.ACCEPTED
