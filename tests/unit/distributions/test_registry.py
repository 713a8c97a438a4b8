"""How a distribution finds its kind, and what a user with an unknown one is told."""

import pytest
from stable_baselines3.common.distributions import CategoricalDistribution, Distribution, MultiCategoricalDistribution

from sb3_trpo import TRPO
from sb3_trpo.distributions.categorical import Categorical
from sb3_trpo.distributions.registry import CORE_KINDS, find_kind, kind_of


class Tweaked(CategoricalDistribution):
    pass


class Unknown(Distribution):
    log_prob = entropy = sample = mode = actions_from_params = log_prob_from_params = proba_distribution_net = None
    proba_distribution = None


class KnowsUnknown(Categorical):
    distributions = (Unknown,)


@pytest.mark.parametrize("distribution", [object.__new__(Unknown), 3], ids=["Unknown", "int"])
def test_an_unknown_distribution_is_refused_by_name_and_told_how_to_become_known(distribution):
    assert find_kind(distribution, CORE_KINDS) is None
    with pytest.raises(TypeError, match=type(distribution).__name__) as caught:
        kind_of(distribution, CORE_KINDS)
    assert "DiagGaussianDistribution" in str(caught.value)
    assert "distribution_kinds = (*TRPO.distribution_kinds, MyKind())" in str(caught.value)


def test_a_subclass_is_of_the_kind_of_its_base():
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
