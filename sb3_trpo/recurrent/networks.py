"""Reading a recurrent policy as LSTMs and plain stacks of layers, if that is what it is; see ``networks/plain_network.py``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.torch_layers import MlpExtractor
from torch import nn

from sb3_trpo.distributions.base import DistributionKind
from sb3_trpo.distributions.policy import AnyDistributionPolicy
from sb3_trpo.distributions.registry import find_kind
from sb3_trpo.extras import CONTRIB, needs
from sb3_trpo.networks.lstm import is_supported
from sb3_trpo.networks.plain_network import (
    KNOWN_METHODS,
    Networks,
    are_uniform,
    computes_as_known,
    is_altered_or_has_buffers,
    is_single_layer,
)
from sb3_trpo.networks.prepared.lstm_steps import LstmStack
from sb3_trpo.networks.reading.features import extracts_numbers, features_of
from sb3_trpo.networks.reading.tracing import trace
from sb3_trpo.networks.stack import Stack
from sb3_trpo.recurrent.policies import MaskableRecurrentActorCriticPolicy, MlpLstmPolicy

with needs(*CONTRIB):
    from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
    from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy

RECURRENT_METHODS = (*KNOWN_METHODS, "_process_sequence")
"""The methods between observation, LSTM state, distribution and value."""
WITH_MEMORY: Mapping[type[BasePolicy], type[RecurrentActorCriticPolicy]] = {
    ActorCriticPolicy: RecurrentActorCriticPolicy,
    AnyDistributionPolicy: MlpLstmPolicy,
    MaskableActorCriticPolicy: MaskableRecurrentActorCriticPolicy,
}
"""The recurrent policy that computes its distribution as a policy without memory does."""


class RecurrentNetworks(NamedTuple):
    """
    A recurrent policy as plain functions on its own tensors.

    :param networks: the layers: the actor's above its LSTM, and the critic's above its own
    :param actor_lstm: maps features to the input of the actor's layers
    :param critic_lstm: maps features to the input of the critic's layers; the actor's if they share it, ``None`` if the critic
        has no memory
    """

    networks: Networks
    actor_lstm: LstmStack
    critic_lstm: LstmStack | None

    @property
    def has_own_lstm(self) -> bool:
        """Whether the critic has an LSTM apart from the actor's."""
        return self.critic_lstm is not None and self.critic_lstm is not self.actor_lstm

    @property
    def policy_tensors(self) -> list[th.Tensor]:
        """What the action distribution depends on."""
        return [*self.actor_lstm.tensors, *self.networks.policy_tensors]

    @property
    def lstm_tensors(self) -> list[th.Tensor]:
        """The weights of the LSTMs."""
        own = self.critic_lstm.tensors if self.critic_lstm is not None and self.has_own_lstm else []
        return [*self.actor_lstm.tensors, *own]

    def copied_lstms(self) -> tuple[LstmStack, LstmStack | None]:
        """Copy the LSTMs to the CPU with their current weights: the actor's, and the one that the critic reads."""
        actor_lstm = self.actor_lstm.on_cpu()
        own = self.critic_lstm.on_cpu() if self.critic_lstm is not None and self.has_own_lstm else None
        return actor_lstm, own if self.has_own_lstm or self.critic_lstm is None else actor_lstm


def read_recurrent_networks(policy: ActorCriticPolicy, kinds: Sequence[DistributionKind]) -> RecurrentNetworks | None:
    """
    Read a recurrent policy's networks, if it is a plain one.

    :param policy: the policy
    :param kinds: known kinds of distributions
    :return: the networks on the policy's own tensors, or ``None``
    """
    kind = find_kind(policy.action_dist, kinds)
    if kind is None or not isinstance(policy, RecurrentActorCriticPolicy):
        return None
    known = [WITH_MEMORY[each] for each in kind.policies if each in WITH_MEMORY]
    if not computes_as_known(policy, known, RECURRENT_METHODS) or _does_something_else(policy):
        return None
    read = _read_layers(policy, kind)
    if read is None:
        return None
    tensors = [*read.networks.policy_tensors, *read.networks.critic.tensors, *read.lstm_tensors]
    return read if are_uniform(tensors) and tensors[0].dtype == th.float32 else None


def _does_something_else(policy: RecurrentActorCriticPolicy) -> bool:
    """Check for altered modules, LSTMs that are not plain, convolutions, and squashed actions, which RecurrentPPO clips."""
    lstms = [lstm for lstm in (policy.lstm_actor, policy.lstm_critic) if lstm is not None]
    return (
        policy.squash_output
        or not extracts_numbers(policy)
        or type(policy.mlp_extractor) is not MlpExtractor
        or is_altered_or_has_buffers(policy)
        or not all(map(is_supported, lstms))
    )


def _read_layers(policy: RecurrentActorCriticPolicy, kind: DistributionKind) -> RecurrentNetworks | None:
    """Read the layers of a policy whose methods are known."""
    head = kind.head(policy)
    actor = trace([policy.mlp_extractor.forward_actor, policy.action_net], is_flat=True)
    critic = _read_critic(policy)
    if head is None or actor is None or critic is None:
        return None
    if head.needs_last_hidden:
        if not is_single_layer(policy.action_net):
            return None
        actor = actor.with_last_input()
    features, takes_vectors = features_of(policy)
    actor_lstm = _read_lstm(policy.lstm_actor)
    if policy.lstm_critic is not None:
        critic_lstm: LstmStack | None = _read_lstm(policy.lstm_critic)
    else:
        critic_lstm = actor_lstm if policy.shared_lstm else None
    return RecurrentNetworks(Networks(features, takes_vectors, actor, head, critic), actor_lstm, critic_lstm)


def _read_critic(policy: RecurrentActorCriticPolicy) -> Stack | None:
    """Read the critic's layers, with the one that stands in for an LSTM if it has none."""
    has_memory = policy.lstm_critic is not None or policy.shared_lstm
    first: list[Any] = [] if has_memory else [policy.critic]
    return trace([*first, policy.mlp_extractor.forward_critic, policy.value_net], is_flat=True)


def _read_lstm(lstm: nn.LSTM) -> LstmStack:
    return LstmStack(tuple(tuple(weights) for weights in lstm.all_weights))
