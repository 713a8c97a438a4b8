"""A library's own methods are told apart from replacements."""

import functools

import pytest
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from stable_baselines3.common.distributions import CategoricalDistribution, DiagGaussianDistribution, Distribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from torch import nn

from sb3_trpo.networks.originals import are_original, has_original_methods

METHODS = [(DummyVecEnv, "step_wait"), (DummyVecEnv, "step"), (ActorCriticPolicy, "forward"), (ActorCriticPolicy, "__call__")]
STATIC = RecurrentActorCriticPolicy, "_process_sequence"


@pytest.mark.parametrize(("owner", "name"), [*METHODS, STATIC])
def test_a_librarys_methods_are_its_own_inherited_ones_too(owner, name):
    assert are_original(owner, [name])


@pytest.mark.parametrize(("owner", "name"), METHODS)
def test_a_method_put_in_its_place_is_not_even_if_it_passes_for_it(owner, name, monkeypatch):
    original = getattr(owner, name)

    @functools.wraps(original)
    def replacement(*arguments):
        return original(*arguments)

    definer = next(each for each in owner.__mro__ if name in vars(each))
    monkeypatch.setattr(definer, name, replacement)
    assert not are_original(owner, ["reset", name])


def test_what_is_no_method_or_is_missing_is_not():
    assert not are_original(VecNormalize, ["observation_space"])
    assert not are_original(nn.Module, ["step"])


@pytest.mark.parametrize("owner", [DiagGaussianDistribution, Distribution])
def test_a_class_with_a_replaced_method_is_told_from_others(owner, monkeypatch):
    assert has_original_methods(DiagGaussianDistribution)
    monkeypatch.setattr(owner, "get_actions", lambda *_: None)
    assert not has_original_methods(DiagGaussianDistribution)
    assert has_original_methods(CategoricalDistribution) is (owner is DiagGaussianDistribution)
