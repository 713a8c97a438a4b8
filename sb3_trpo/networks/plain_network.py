"""
Reading an SB3 policy as plain stacks of layers, if that is what it is.

Every method between observation and distribution must be SB3's, and every module of a type whose computation is known.
Subclasses, hooks, parametrizations, compiled modules and patched methods all give ``None``: the policy is then run by its own
methods.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, cast

import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.preprocessing import is_image_space, preprocess_obs
from stable_baselines3.common.torch_layers import CombinedExtractor, FlattenExtractor, MlpExtractor, NatureCNN
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import nn

from sb3_trpo.distributions.base import DistributionKind, Head
from sb3_trpo.distributions.registry import CORE_KINDS, find_kind
from sb3_trpo.networks.activations import ACTIVATIONS, IDENTITY
from sb3_trpo.networks.affine import Affine, Convolution, Dense
from sb3_trpo.networks.stack import Layer, Stack
from sb3_trpo.numerics.torch_private import has_global_module_hooks, has_gradient_hooks, is_hooked_or_compiled

Features = Callable[[PyTorchObs], th.Tensor]
"""Turns observations, a tensor or a dict of tensors, into the input of a stack."""

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
        return isinstance(self.actor.layers[0].affine, Convolution)

    @property
    def policy_tensors(self) -> list[th.Tensor]:
        """What the action distribution depends on."""
        return [*self.actor.tensors, *self.head.parameters]

    @th.no_grad()
    def on_cpu(self) -> Networks:
        """Copy the networks to the CPU with their current weights."""

        def copied(tensors: list[th.Tensor]) -> list[th.Tensor]:
            return [tensor.to("cpu", copy=True) for tensor in tensors]

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
    if any(map(is_altered, policy.modules())) or is_patched(policy.action_dist):
        return None
    head = kind.head(policy)  # after the checks: only a policy with known methods has the attributes that a head reads
    features, takes_vectors = features_of(policy)
    actor = read_stack([*_trunk(policy.pi_features_extractor), *policy.mlp_extractor.policy_net, policy.action_net])
    critic = read_stack([*_trunk(policy.vf_features_extractor), *policy.mlp_extractor.value_net, policy.value_net])
    if head is None or actor is None or critic is None:
        return None
    if head.needs_last_hidden:
        actor = actor.with_last_input()
    networks = Networks(features, takes_vectors, actor, head, critic)
    return networks if are_uniform([*networks.policy_tensors, *critic.tensors]) else None


def computes_as_known(policy: ActorCriticPolicy, classes: Sequence[type[BasePolicy]], methods: Sequence[str]) -> bool:
    """
    Check that methods, and the types of the parts that call each other, are the known ones.

    :param policy: the policy
    :param classes: known policies
    :param methods: names of the methods that one of them must have in common with the policy
    :return: whether nothing but the layers is left to look at
    """
    own = type(policy)
    inherits = any(all(getattr(own, name) is getattr(known, name, None) for name in methods) for known in classes)
    nets = policy.mlp_extractor
    return (
        inherits
        and not has_global_module_hooks()
        and type(nets) is MlpExtractor
        and type(nets.policy_net) is type(nets.value_net) is nn.Sequential
        and _extract_alike(policy)
    )


def _extract_alike(policy: ActorCriticPolicy) -> bool:
    """Check that actor and critic make the same features from an observation, apart from layers with weights."""
    shared, actor, critic = policy.features_extractor, policy.pi_features_extractor, policy.vf_features_extractor
    if policy.share_features_extractor and not shared is actor is critic:
        return False
    kind = type(actor)
    return kind is type(critic) and kind in _PLAIN_EXTRACTORS and _PLAIN_EXTRACTORS[kind](actor, critic)


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


def _trunk(extractor: Any) -> Iterable[Any]:
    """List the layers of a features extractor; extractors without parameters have none."""
    return [*extractor.cnn, *extractor.linear] if type(extractor) is NatureCNN else []


def features_of(policy: ActorCriticPolicy) -> tuple[Features, bool]:
    """
    Read what a policy with known extractors does before its first layer with weights.

    :param policy: the policy
    :return: the function, and whether its results are the numbers of the observation, unchanged
    """
    takes_vectors = _takes_vectors(policy)
    return (_as_floats if takes_vectors else _read_features(policy)), takes_vectors


def _takes_vectors(policy: ActorCriticPolicy) -> bool:
    """Check that SB3's preprocessing has nothing to do: no image to scale, no choice to encode, no matrix to flatten."""
    space = policy.observation_space
    return isinstance(space, spaces.Box) and len(space.shape) == 1 and type(policy.pi_features_extractor) is FlattenExtractor


def _as_floats(observations: PyTorchObs) -> th.Tensor:
    assert isinstance(observations, th.Tensor)
    return observations.float()


def _read_features(policy: ActorCriticPolicy) -> Features:
    """Choose the function from observations to the stacks' input: SB3's preprocessing, flattened except for a CNN."""
    space, extractor = policy.observation_space, cast("Any", policy.pi_features_extractor)

    def preprocessed(observations: PyTorchObs) -> Any:
        return preprocess_obs(observations, space, normalize_images=policy.normalize_images)

    def concatenated(observations: PyTorchObs) -> th.Tensor:
        parts = preprocessed(observations)
        return th.cat([parts[key].flatten(1) for key in extractor.extractors], dim=1)

    def channels_last(observations: PyTorchObs) -> th.Tensor:
        assert isinstance(observations, th.Tensor)
        if observations.device.type == "cpu":  # weight gradients of convolutions then take less than half the time
            observations = observations.contiguous(memory_format=th.channels_last)
        if not (policy.normalize_images and is_image_space(space)):
            return observations.float()
        return observations.to(th.float32, copy=True).div_(255.0)  # in place: SB3's division makes a second copy

    if type(extractor) is FlattenExtractor:
        return lambda observations: cast("th.Tensor", preprocessed(observations).flatten(1))
    return concatenated if type(extractor) is CombinedExtractor else channels_last


def read_stack(modules: Iterable[Any]) -> Stack | None:
    """
    Pair affine maps with the activations after them.

    :param modules: the modules, in the order in which they are called
    :return: the layers, ``None`` if a module does not fit
    """
    layers: list[Layer] = []
    may_activate = False  # whether the last layer has no activation yet
    for module in modules:
        affine = _AFFINE[type(module)](module) if type(module) in _AFFINE else None
        if affine is not None:
            layers.append(Layer(affine, module.weight, module.bias, IDENTITY))
            may_activate = True
        elif may_activate and type(module) in ACTIVATIONS:
            layers[-1] = layers[-1]._replace(activation=ACTIVATIONS[type(module)](module))
            may_activate = False
        # A dense layer flattens its input by itself, so a flatten between convolutions and dense layers needs no layer.
        elif not _flattens(module) or not layers or not isinstance(layers[-1].affine, Convolution):
            return None
    return Stack(tuple(layers))


def _flattens(module: nn.Module) -> bool:
    return type(module) is nn.Flatten and (module.start_dim, module.end_dim) == (1, -1)


def _only_flatten(*extractors: Any) -> bool:
    """Check that FlattenExtractors do nothing else."""
    return all(_flattens(extractor.flatten) for extractor in extractors)


def _only_concatenate(actor: Any, critic: Any) -> bool:
    """Check that CombinedExtractors read the same entries of the observation, in the same order, and none by convolutions."""
    parts = [*actor.extractors.values(), *critic.extractors.values()]
    return list(actor.extractors) == list(critic.extractors) and all(map(_flattens, parts))


def _are_sequences(*extractors: Any) -> bool:
    """Check that NatureCNNs are plain sequences, whose layers are read one by one."""
    return all(type(part) is nn.Sequential for extractor in extractors for part in (extractor.cnn, extractor.linear))


_PLAIN_EXTRACTORS: dict[type[nn.Module], Callable[[Any, Any], bool]] = {
    FlattenExtractor: _only_flatten,
    CombinedExtractor: _only_concatenate,
    NatureCNN: _are_sequences,
}


def _read_convolution(module: nn.Conv2d) -> Affine | None:
    if module.padding_mode != "zeros" or isinstance(module.padding, str):
        return None
    return Convolution(module.stride, module.padding, module.dilation, module.groups)


_AFFINE: dict[type[nn.Module], Callable[..., Affine | None]] = {nn.Linear: lambda _: Dense(), nn.Conv2d: _read_convolution}


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
