"""The critic above an extractor that it does not train: it is read as what it computes, or not at all."""

from __future__ import annotations

import pytest
import torch as th
from gymnasium import spaces
from helpers.envs import BOX_ACTION, VECTOR, RandomEnv
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn

from sb3_trpo import TRPO, MlpPolicy
from sb3_trpo.networks.plain_network import read_networks
from sb3_trpo.networks.reading.upper_critic import are_constant, read_upper_critic

OBSERVATIONS = th.randn(5, 3, generator=th.Generator().manual_seed(0))


class Shortcut(BaseFeaturesExtractor):
    """Not a plain stack."""

    def __init__(self, observation_space: spaces.Box, p: float = 0.0) -> None:
        super().__init__(observation_space, 4)
        self.layer, self.dropout = nn.Linear(3, 4), nn.Dropout(p)

    def forward(self, observations: th.Tensor) -> th.Tensor:
        hidden = self.layer(observations).tanh()
        return self.dropout(hidden + hidden.square())


def model_of(policy: type[ActorCriticPolicy] = MlpPolicy, p: float = 0.0, is_shared: bool = True, **kwargs) -> TRPO:
    kwargs |= {
        "features_extractor_class": Shortcut,
        "features_extractor_kwargs": {"p": p},
        "share_features_extractor": is_shared,
        "net_arch": [6],
    }
    return TRPO(policy, RandomEnv(VECTOR, BOX_ACTION), n_steps=32, batch_size=16, seed=0, device="cpu", policy_kwargs=kwargs)


def of_critic(model: TRPO) -> list[nn.Parameter]:
    policy = model.policy
    return [*policy.mlp_extractor.value_net.parameters(), *policy.value_net.parameters()]


def test_features_and_layers_together_are_the_critic():
    model = model_of()
    assert read_networks(model.policy) is None
    features, stack = read_upper_critic(model.policy, of_critic(model))
    with th.no_grad():
        assert th.equal(stack(features(OBSERVATIONS)), model.policy.predict_values(OBSERVATIONS))
    assert [id(tensor) for tensor in stack.tensors] == [*map(id, of_critic(model))]


class Negative(MlpPolicy):
    def predict_values(self, obs: th.Tensor) -> th.Tensor:
        return -super().predict_values(obs)


def hooked() -> TRPO:
    model = model_of()
    model.policy.features_extractor.register_forward_hook(lambda *_: None)
    return model


def normalized() -> TRPO:
    model = model_of()
    model.policy.mlp_extractor.value_net.append(nn.LayerNorm(6))
    return model


def own_module() -> TRPO:
    model = model_of()
    model.policy.mlp_extractor.value_net[1].__class__ = type("Own", (nn.Tanh,), {})
    return model


@pytest.mark.parametrize(
    "make", [lambda: model_of(Negative), hooked, normalized, own_module], ids=["method", "hook", "layer", "module"]
)
def test_anything_else_is_left_alone(make):
    model = make()
    assert read_upper_critic(model.policy, of_critic(model)) is None


def test_an_extractor_that_the_critic_trains_is_left_alone():
    model = model_of(is_shared=False)
    extractor = [*model.policy.vf_features_extractor.parameters()]
    assert read_upper_critic(model.policy, [*of_critic(model), extractor[0]]) is None
    assert read_upper_critic(model.policy, of_critic(model)) is not None


@pytest.mark.parametrize("p", [0.0, 0.01, 0.5])
def test_features_with_dropout_are_not_constant_and_no_draw_is_lost(p):
    model = model_of(p=p)
    model.policy.set_training_mode(True)
    features, _ = read_upper_critic(model.policy, of_critic(model))
    before = th.get_rng_state()
    assert are_constant(model.policy, features, OBSERVATIONS) is (p == 0.0)
    assert th.equal(th.get_rng_state(), before)


def test_features_that_depend_on_other_observations_are_not_constant():
    model = model_of()
    features, _ = read_upper_critic(model.policy, of_critic(model))
    assert are_constant(model.policy, features, OBSERVATIONS)
    assert not are_constant(model.policy, lambda seen: features(seen) - features(seen).mean(0), OBSERVATIONS)
    paired = {"a": OBSERVATIONS, "b": OBSERVATIONS}
    assert are_constant(model.policy, lambda seen: features(seen["a"]) + features(seen["b"]), paired)


@pytest.mark.parametrize(
    "mixing",
    [
        lambda seen: seen * (2.0 if seen.sum() > OBSERVATIONS[0].sum() else 1.0),
        lambda seen: seen * (2.0 if len(seen) == 1 and seen.max() == OBSERVATIONS[3].max() else 1.0),
        lambda seen: seen - (seen[:1] if len(seen) > 1 else 0.0),
        lambda seen: seen * (1.0 + (len(seen) > 1) * th.linspace(0.0, 1.0, len(seen))[:, None]),
    ],
    ids=["branch", "one of them", "first row", "position"],
)
def test_features_that_depend_on_the_batch_as_a_whole_are_not_constant(mixing):
    model = model_of()
    assert are_constant(model.policy, lambda seen: seen, OBSERVATIONS)
    assert not are_constant(model.policy, mixing, OBSERVATIONS)
    assert not are_constant(model.policy, lambda seen: mixing(seen["a"]), {"a": OBSERVATIONS})


def test_features_are_not_constant_if_a_module_writes_to_its_weights():
    model = model_of()
    layer = model.policy.vf_features_extractor.layer
    before = layer.weight.tolist()
    assert not are_constant(model.policy, lambda seen: layer(seen + 0.0 * layer.weight.clamp_(-0.1, 0.1).sum()), OBSERVATIONS)
    assert layer.weight.tolist() == before


@pytest.mark.parametrize(("p", "is_fast"), [(0.0, 1.0), (0.5, 0.0)])
def test_the_fit_is_the_general_one(p, is_fast, monkeypatch):
    def fitted() -> TRPO:
        model = model_of(p=p)
        model.verbose = 2
        model.learn(32, log_interval=None)
        return model

    ours = fitted()
    monkeypatch.setattr("sb3_trpo.update.flat_critic.plain_regression", lambda *_: None)
    theirs = fitted()
    assert (ours.logger.name_to_value["train/fast_critic"], theirs.logger.name_to_value["train/fast_critic"]) == (is_fast, 0.0)
    for one, other in zip(ours.policy.parameters(), theirs.policy.parameters(), strict=True):
        th.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
