"""
Reading an SB3 policy as plain stacks of layers, if that is what it is.

Every method of the policy between observation and distribution must be SB3's. What its modules compute, SB3's or the user's,
is found by tracing them. Hooks, parametrizations, compiled modules and patched methods all give ``None``: the policy is then
run by its own methods.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain, islice, takewhile
from typing import Any, NamedTuple

import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.torch_layers import MlpExtractor
from torch import nn

from sb3_trpo.distributions.base import DistributionKind, Head
from sb3_trpo.distributions.registry import CORE_KINDS, find_kind
from sb3_trpo.networks.activations import IDENTITY
from sb3_trpo.networks.affine import Convolution, Dense
from sb3_trpo.networks.originals import LIBRARIES, are_original, has_original_methods
from sb3_trpo.networks.reading.features import Features, are_rows, concatenates, features_of, some_inputs
from sb3_trpo.networks.reading.purity import undisturbed
from sb3_trpo.networks.reading.tracing import computes_alike, in_mode, outcome, same_stacks, trace
from sb3_trpo.networks.stack import Stack, identity
from sb3_trpo.numerics.side_effects import SideEffectError
from sb3_trpo.numerics.torch_private import has_global_module_hooks, has_gradient_hooks, is_hooked_or_compiled

Functions = list[Callable[[Any], Any]]
"""Functions that follow each other, such as modules."""
KNOWN_METHODS = (
    "__call__",
    "forward",
    "extract_features",
    "get_distribution",
    "predict_values",
    "evaluate_actions",
    "_get_action_dist_from_latent",
)
"""The methods between observation, distribution and value."""


class Networks(NamedTuple):
    """
    A policy as plain functions on its own tensors.

    :param features: maps observations to the input of both stacks
    :param takes_vectors: whether the features are the numbers of the observation, unchanged
    :param actor: maps features to the input of the head
    :param head: maps the actor's output to the action distribution
    :param critic: maps features to the value, shape ``(n, 1)``
    """

    features: Features
    takes_vectors: bool
    actor: Stack
    head: Head
    critic: Stack

    @property
    def of_images(self) -> bool:
        """Whether the features are images, which take more memory than the observations they are made from."""
        return _reads_images(self.actor)

    @property
    def policy_tensors(self) -> list[th.Tensor]:
        """What the action distribution depends on."""
        return [*self.actor.tensors, *self.head.parameters]

    @property
    def n_shared_layers(self) -> int:
        """Number of layers from the first on that actor and critic have in common; 0 if their result is still an image."""
        pairs = zip(self.actor.layers, self.critic.layers, strict=False)
        shared = [one for one, _ in takewhile(lambda pair: identity(pair[0]) == identity(pair[1]), pairs)]
        return len(shared) if shared and isinstance(shared[-1].affine, Dense) else 0

    @th.no_grad()
    def copied_to(self, device: th.device) -> Networks:
        """
        Copy the networks with their current weights.

        :param device: where to
        :return: the copy; actor and critic have the same layers in common
        """
        copies: dict[int, th.Tensor] = {}

        def copied(tensors: list[th.Tensor]) -> list[th.Tensor]:
            for tensor in tensors:
                if id(tensor) not in copies:
                    copies[id(tensor)] = tensor.to(device, copy=True)
            return [copies[id(tensor)] for tensor in tensors]

        return self._replace(
            actor=self.actor.with_tensors(copied(self.actor.tensors)),
            head=self.head.with_parameters(copied(self.head.parameters)),
            critic=self.critic.with_tensors(copied(self.critic.tensors)),
        )


def read_networks(policy: ActorCriticPolicy, kinds: Sequence[DistributionKind] = CORE_KINDS) -> Networks | None:
    """
    Read a policy's networks, if it is a plain one.

    Nothing is cached, because users replace modules between updates.

    :param policy: the policy
    :param kinds: known kinds of distributions
    :return: the networks on the policy's own tensors, or ``None``
    """
    kind = find_kind(policy.action_dist, kinds)
    if kind is None or not computes_as_known(policy, kind.policies, KNOWN_METHODS):
        return None
    if is_altered_or_has_buffers(policy):
        return None
    head = kind.head(policy)  # after the checks: only a policy with known methods has the attributes that a head reads
    actor, critic = _read_stacks(policy)
    if head is None or actor is None or critic is None or _reads_images(actor) is not _reads_images(critic):
        return None
    if head.needs_last_hidden:
        if not is_single_layer(policy.action_net):
            return None  # its input is not the last layer's
        actor = actor.with_last_input()
    features, takes_vectors = features_of(policy, _reads_images(actor))
    networks = Networks(features, takes_vectors, actor, head, critic)
    return networks if are_uniform([*networks.policy_tensors, *critic.tensors]) else None


def computes_as_known(policy: ActorCriticPolicy, classes: Sequence[type[BasePolicy]], methods: Sequence[str]) -> bool:
    """
    Check that a policy calls its parts as a known one does.

    :param policy: the policy
    :param classes: known policies
    :param methods: names of the methods that one of them must have in common with the policy
    :return: whether nothing but the parts is left to look at
    """
    own = type(policy)
    inherits = any(all(getattr(own, name) is getattr(known, name, None) for name in methods) for known in classes)
    inherits = inherits and are_original(own, methods)
    shared, actor, critic = policy.features_extractor, policy.pi_features_extractor, policy.vf_features_extractor
    is_shared = shared is actor is critic or not policy.share_features_extractor
    return inherits and is_shared and not has_global_module_hooks()


def is_altered_or_has_buffers(policy: ActorCriticPolicy) -> bool:
    """
    Check for what a trace does not show, or must not be shown to: layers may change their buffers whenever they run.

    :param policy: the policy
    :return: whether a module or the distribution is altered, or there are any buffers
    """
    has_buffers = next(policy.buffers(), None) is not None
    is_sb3s = has_original_methods(type(policy.action_dist)) and not is_patched(policy.action_dist)
    return has_buffers or any(map(is_altered, policy.modules())) or not is_sb3s


def is_altered(module: nn.Module) -> bool:
    """
    Check for anything that changes what a module computes without changing its type.

    :param module: the module
    :return: whether there is anything
    """
    return is_hooked_or_compiled(module) or is_patched(module)


def is_patched(thing: object) -> bool:
    """
    Check for attributes of an object that hide methods of its class.

    :param thing: the object
    :return: whether there are any
    """
    return any(callable(getattr(type(thing), name, None)) for name in vars(thing))


def _read_stacks(policy: ActorCriticPolicy) -> tuple[Stack | None, Stack | None]:
    """Read actor and critic, from features to the last layer, if they are the same in every way in which they may be run."""
    is_known_whole = all(map(is_known, islice(policy.modules(), 1, None)))  # its parts; its own methods are known
    try:
        first, *others = _readings(policy) if is_known_whole else _checked_readings(policy)
    except SideEffectError:
        return None, None
    is_one = all(same_stacks(*pair) for other in others for pair in zip(first, other, strict=True))
    return first if is_one else (None, None)


def _checked_readings(policy: ActorCriticPolicy) -> list[tuple[Stack | None, Stack | None]]:
    """Read networks with modules of the user's in both modes, and compare them with what those compute from data."""
    x = some_inputs(policy)
    refused: list[tuple[Stack | None, Stack | None]] = [(None, None)]
    with undisturbed(*policy.children()) as purity:
        with in_mode(policy, is_training=True):
            in_training = _readings(policy)
        with in_mode(policy, is_training=False):
            readings = _readings(policy)
            pairs = [*zip(chain(*readings), chain(*_ways(policy)), strict=True)]
            if x is None or any(stack is None for stack, _ in pairs):
                return refused
            outcomes = [(outcome(functions, stack, x), stack) for stack, functions in pairs if stack is not None]
    is_right = purity.is_kept and all(computes_alike(found, stack, x) for found, stack in outcomes)
    return [*in_training, *readings] if is_right else refused


def is_known(module: nn.Module) -> bool:
    """
    Check that a module does the same in both modes, unless it asks torch for something that no plain stack does.

    :param module: the module
    :return: whether it is torch's, SB3's or ours rather than a user's
    """
    return type(module).__module__.partition(".")[0] in LIBRARIES


def _readings(policy: ActorCriticPolicy) -> list[tuple[Stack | None, Stack | None]]:
    """Trace actor and critic in each way in which they may be run."""
    is_flat = are_rows(policy.observation_space) or concatenates(policy)
    return [(trace(actor, is_flat), trace(critic, is_flat)) for actor, critic in _ways(policy)]


def _ways(policy: ActorCriticPolicy) -> list[tuple[Functions, Functions]]:
    """List what actor and critic call: each network by itself and, if they share features, both as ``forward`` runs them."""
    nets = policy.mlp_extractor
    extractors: Any = policy.pi_features_extractor, policy.vf_features_extractor
    below: list[list[Any]] = [[], []] if concatenates(policy) else [[extractor] for extractor in extractors]
    latents: list[tuple[Any, Any]] = [(nets.forward_actor, nets.forward_critic)]
    if policy.share_features_extractor and type(nets) is not MlpExtractor:  # whose forward does nothing else
        latents.append((lambda x: nets(x)[0], lambda x: nets(x)[1]))
    heads = policy.action_net, policy.value_net
    return [([*below[0], actor, heads[0]], [*below[1], critic, heads[1]]) for actor, critic in latents]


def is_single_layer(module: nn.Module) -> bool:
    """
    Check that a module is one dense layer without activation.

    :param module: the module, such as the policy's ``action_net``
    :return: whether it is
    """
    read = trace([module], is_flat=True)
    return read is not None and len(read.layers) == 1 and read.layers[0].activation is IDENTITY


def _reads_images(stack: Stack) -> bool:
    return isinstance(stack.layers[0].affine, Convolution)


def are_uniform(tensors: list[th.Tensor]) -> bool:
    """
    Check for plain parameters of one type and device, without hooks on their gradients.

    :param tensors: the tensors, at least one
    :return: whether all of them are
    """
    first = tensors[0]
    return all(
        type(tensor) is nn.Parameter
        and (tensor.dtype, tensor.device) == (first.dtype, first.device)
        and not has_gradient_hooks(tensor)
        for tensor in tensors
    )
