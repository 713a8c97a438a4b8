"""What a recurrent policy is read as: the same tensors, or nothing if anything about it is unknown."""

import pytest
import torch as th
from helpers.envs import DICT, IMAGE
from helpers.recurrent_tools import CHOICES, CRITICS, TINY, small_model, vec_env
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from torch import nn

from sb3_trpo import TRPO
from sb3_trpo.distributions.registry import CORE_KINDS
from sb3_trpo.recurrent import MaskableMlpLstmPolicy, MaskableRecurrentTRPO, MlpLstmPolicy, RecurrentTRPO
from sb3_trpo.recurrent.networks import read_recurrent_networks


def read(model):
    return read_recurrent_networks(model.policy, model.distribution_kinds)


@pytest.mark.parametrize("critic", CRITICS)
@pytest.mark.parametrize("policy", [MlpLstmPolicy, RecurrentActorCriticPolicy, MaskableMlpLstmPolicy])
def test_every_parameter_is_read_once(policy, critic):
    algorithm = MaskableRecurrentTRPO if policy is MaskableMlpLstmPolicy else RecurrentTRPO
    model = small_model(algorithm, policy=policy, policy_kwargs=CRITICS[critic] | {"n_lstm_layers": 2})
    found = read(model)
    tensors = [*found.networks.policy_tensors, *found.networks.critic.tensors, *found.lstm_tensors]
    assert sorted(map(id, tensors)) == sorted(map(id, model.policy.parameters()))
    assert found.has_own_lstm == (critic == "own LSTM")
    assert (found.critic_lstm is None) == (critic == "no LSTM")


@pytest.mark.parametrize("critic", CRITICS)
def test_copies_of_lstms_share_what_the_originals_share(critic):
    found = read(small_model(policy_kwargs=CRITICS[critic]))
    actor, other = found.copied_lstms()
    assert (other is actor) == (critic == "shared LSTM")
    assert (other is None) == (critic == "no LSTM")
    copies = actor.tensors if other is actor or other is None else [*actor.tensors, *other.tensors]
    for copied, tensor in zip(copies, found.lstm_tensors, strict=True):
        assert th.equal(copied, tensor)
        assert copied.data_ptr() != tensor.data_ptr()


class Subclass(MlpLstmPolicy):
    """Changes nothing."""


class OtherValues(MlpLstmPolicy):
    """Computes values in its own way."""

    def predict_values(self, *args):
        return super().predict_values(*args)


class OtherLstm(nn.LSTM):
    """Might compute anything."""


def altered(change):
    model = small_model()
    change(model.policy)
    return model


def patch(policy):
    policy.forward = policy.forward


UNKNOWN = {
    "overridden method": lambda: small_model(policy=OtherValues),
    "patched method": lambda: altered(patch),
    "hook": lambda: altered(lambda policy: policy.lstm_critic.register_forward_hook(lambda *_: None)),
    "subclass of LSTM": lambda: altered(lambda policy: setattr(policy, "lstm_actor", OtherLstm(3, TINY["lstm_hidden_size"]))),
    "float64": lambda: altered(lambda policy: policy.double()),
    "squashed": lambda: small_model(
        env=vec_env(action_space=vec_env().observation_space), use_sde=True, policy_kwargs={"squash_output": True}
    ),
    "images": lambda: small_model(env=vec_env(observation_space=IMAGE), policy="CnnLstmPolicy"),
    "images and vectors": lambda: small_model(env=vec_env(observation_space=DICT), policy="MultiInputLstmPolicy"),
    "no memory": lambda: TRPO("MlpPolicy", vec_env(), n_steps=4, batch_size=8),
}


@pytest.mark.parametrize("make", UNKNOWN.values(), ids=UNKNOWN)
def test_what_is_unknown_is_not_read(make):
    assert read(make()) is None


def test_a_subclass_that_changes_no_method_is_read():
    assert read(small_model(policy=Subclass)) is not None


def test_a_maskable_policy_is_not_taken_for_one_without_masks():
    model = small_model(MaskableRecurrentTRPO, vec_env(action_space=CHOICES["Discrete"]))
    assert read_recurrent_networks(model.policy, CORE_KINDS) is None
