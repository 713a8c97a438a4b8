"""Recurrent layers are kept from cuDNN where it lacks a derivative, and nothing else is."""

from contextlib import nullcontext
from functools import partial
from unittest import mock

import pytest
import torch as th
from helpers.contract_tools import moved_since, observations, parameters
from helpers.envs import RandomEnv
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn
from torch.nn import functional as F  # noqa: N812

from sb3_trpo import TRPO
from sb3_trpo.networks import double_backward
from sb3_trpo.networks.double_backward import UNFUSED_ATTENTION, twice_differentiable, without_cudnn
from sb3_trpo.numerics.trust_region import Outcome

LAYERS = {
    "GRU": partial(nn.GRU, 2, 3),
    "RNN": partial(nn.RNN, 2, 3),
    "bidirectional LSTM": partial(nn.LSTM, 2, 3, bidirectional=True),
    "Conv1d": partial(nn.Conv1d, 4, 3, 1),
}


def noting(layer, seen):
    """Make a layer note whether cuDNN may be used while it runs."""
    forward = layer.forward

    def note(*args):
        seen.append(th.backends.cudnn.enabled)
        return forward(*args)

    layer.forward = note
    return layer


@pytest.fixture
def _as_on_cuda(monkeypatch):
    """Make layers on the CPU believe that they could use cuDNN."""
    monkeypatch.setattr(double_backward, "without_cudnn", lambda device: without_cudnn(th.device("cuda")))


@pytest.mark.usefixtures("_as_on_cuda")
@pytest.mark.parametrize("enabled", [True, False])
@pytest.mark.parametrize("name", LAYERS)
def test_recurrent_layers_alone_are_kept_from_cudnn(name, enabled, monkeypatch):
    monkeypatch.setattr(th.backends.cudnn, "enabled", enabled)
    seen, x = [], th.zeros(1, 4, 2)
    layer, other = noting(LAYERS[name](), seen), noting(nn.Conv1d(4, 3, 1), seen)
    with twice_differentiable(nn.Sequential(layer, other)):
        layer(x)
        other(x)
        assert th.backends.cudnn.enabled is enabled
    layer(x)
    assert seen == [enabled and name == "Conv1d", enabled, enabled]
    assert th.backends.cudnn.enabled is enabled


@pytest.mark.usefixtures("_as_on_cuda")
@pytest.mark.parametrize("enabled", [True, False])
@pytest.mark.parametrize("breaks", ["layer", "block"])
def test_cudnn_is_restored_after_an_error(breaks, enabled, monkeypatch):
    monkeypatch.setattr(th.backends.cudnn, "enabled", enabled)
    layer = nn.GRU(2, 3)
    forward = layer if breaks == "layer" else mock.Mock(side_effect=RuntimeError)
    with pytest.raises(RuntimeError), twice_differentiable(layer):
        forward(th.zeros(4, 1, 3))  # it wants 2
    assert th.backends.cudnn.enabled is enabled
    assert "forward" not in vars(layer)


@pytest.mark.usefixtures("_as_on_cuda")
@pytest.mark.parametrize("inner", [False, True])
def test_the_block_may_be_nested(inner):
    seen, x = [], th.zeros(1, 1, 2)
    layer = noting(nn.GRU(2, 3), seen)
    with twice_differentiable(layer):
        with twice_differentiable(layer) if inner else nullcontext():
            layer(x)
        layer(x)
    layer(x)
    assert seen == [False, False, True]


def test_on_a_cpu_cudnn_is_not_touched():
    seen = []
    layer = noting(nn.GRU(2, 3), seen)
    with twice_differentiable(layer):
        layer(th.zeros(1, 1, 2))
    assert seen == [True]


def test_cudnn_stays_off_until_the_last_thread_that_needs_it_off_leaves():
    first, second = without_cudnn(th.device("cuda")), without_cudnn(th.device("cuda"))
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)  # before the second one, as only threads can
    assert not th.backends.cudnn.enabled
    second.__exit__(None, None, None)
    assert th.backends.cudnn.enabled


class Remembering(BaseFeaturesExtractor):
    """Reads each observation as a sequence of numbers."""

    def __init__(self, observation_space):
        super().__init__(observation_space, 3)
        self.gru, self.noted = nn.GRU(1, 3, batch_first=True), []

    def forward(self, x):
        self.noted.append(th.backends.cudnn.enabled)
        return self.gru(x.unsqueeze(2))[0][:, -1]


@pytest.mark.filterwarnings("ignore:The policy gives the rollout's actions")  # the policy has changed since the first update
@pytest.mark.usefixtures("_as_on_cuda")
def test_plain_policies_may_have_recurrent_extractors():
    kwargs = {"features_extractor_class": Remembering, "net_arch": [4]}
    model = TRPO("MlpPolicy", RandomEnv(), n_steps=32, batch_size=32, n_critic_updates=1, policy_kwargs=kwargs, seed=0)
    extractor, before = model.policy.pi_features_extractor, parameters(model.policy)
    model.learn(32)
    assert model.policy_outcome.value == "accepted"
    assert sum(name.startswith("features_extractor.gru.") for name in moved_since(before, model.policy)) == 4
    assert set(extractor.noted) == {True}
    seen, states = [], observations(model)
    noting(extractor.gru, seen)
    model.train()
    assert False in seen
    plain = model.policy.get_distribution(states).distribution.probs
    with twice_differentiable(model.policy):
        assert th.equal(model.policy.get_distribution(states).distribution.probs, plain)


class Attentive(BaseFeaturesExtractor):
    """Lets the numbers of an observation attend to each other."""

    def __init__(self, observation_space, by_function=False):
        super().__init__(observation_space, 6)
        self.embed, self.by_function, self.noted = nn.Linear(1, 2), by_function, []
        self.layer = nn.TransformerEncoderLayer(2, 1, 4, batch_first=True)

    def forward(self, x):
        tokens = self.embed(x.unsqueeze(2))
        if self.by_function:
            self.noted.append(th.backends.cuda.flash_sdp_enabled())
            return F.scaled_dot_product_attention(tokens, tokens, tokens).flatten(1)
        self.noted.append(th.backends.mha.get_fastpath_enabled())
        return self.layer(tokens).flatten(1)


@pytest.mark.parametrize("by_function", [False, True])
def test_policies_may_attend(by_function):
    kwargs = {
        "features_extractor_class": Attentive,
        "features_extractor_kwargs": {"by_function": by_function},
        "net_arch": [4],
        "normalize_images": False,
    }
    model = TRPO("MlpPolicy", RandomEnv(), n_steps=32, batch_size=32, n_critic_updates=1, policy_kwargs=kwargs, seed=0)
    before = parameters(model.policy)
    model.learn(64)
    assert model.policy_outcome is Outcome.ACCEPTED
    assert any(name.startswith("features_extractor") for name in moved_since(before, model.policy))
    noted = model.policy.pi_features_extractor.noted
    assert {True, False} <= set(noted)  # fused where it acts, not where it is differentiated
    assert th.backends.mha.get_fastpath_enabled()
    assert th.backends.cuda.flash_sdp_enabled()


def test_attention_stays_unfused_until_the_last_thread_leaves():
    first, second = UNFUSED_ATTENTION(), UNFUSED_ATTENTION()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert not th.backends.mha.get_fastpath_enabled()
    assert not th.backends.cuda.flash_sdp_enabled()
    second.__exit__(None, None, None)
    assert th.backends.mha.get_fastpath_enabled()
    assert th.backends.cuda.flash_sdp_enabled()
