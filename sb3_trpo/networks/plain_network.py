"""
Which policies are plain stacks of layers, and the stacks: read out of an SB3 policy by what it is.

Every method between observation and distribution must be SB3's own, and every module one whose whole effect is known.
Subclasses, hooks, parametrisations, compiled modules and patched methods all give ``None``: the policy is then run as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, cast

import torch as th
from gymnasium import spaces
from stable_baselines3.common.distributions import DiagGaussianDistribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.preprocessing import is_image_space, preprocess_obs
from stable_baselines3.common.torch_layers import CombinedExtractor, FlattenExtractor, MlpExtractor, NatureCNN
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import nn

from sb3_trpo.distributions.sampling import DRAWS
from sb3_trpo.networks.layers import ACTIVATIONS, IDENTITY, Affine, Convolution, Dense, Layer, Stack
from sb3_trpo.numerics.torch_private import has_global_module_hooks, has_gradient_hooks, is_hooked_or_compiled

Features = Callable[[PyTorchObs], th.Tensor]
"""Turns observations, a tensor or a dict of tensors, into the input of a stack."""

OWN_METHODS = (
    "__call__",
    "forward",
    "extract_features",
    "get_distribution",
    "predict_values",
    "evaluate_actions",
    "_get_action_dist_from_latent",
)
"""Of the policies below: what lies between observation, distribution and value."""
PLAIN_POLICIES: list[type] = [ActorCriticPolicy]
"""Whose methods are known: a policy's must be those of one of them."""


class Networks(NamedTuple):
    """
    A policy as plain functions on its own tensors.

    :param features: what both stacks are given
    :param takes_vectors: whether the features are the observation's numbers as they are
    :param actor: from features to what ``action_dist.proba_distribution`` takes first
    :param critic: from features to the value, shape ``(n, 1)``
    :param log_std: what it takes next, for a Gaussian
    """

    features: Features
    takes_vectors: bool
    actor: Stack
    critic: Stack
    log_std: th.Tensor | None

    @property
    def of_images(self) -> bool:
        """Whether the features are images, which take more memory than the observations they are made of."""
        return isinstance(self.actor.layers[0].affine, Convolution)

    @property
    def policy_tensors(self) -> list[th.Tensor]:
        """What the action distribution depends on."""
        return self.actor.tensors if self.log_std is None else [*self.actor.tensors, self.log_std]

    @th.no_grad()
    def on_cpu(self) -> Networks:
        """Copy the networks to the CPU, as they are now."""

        def copied(stack: Stack) -> Stack:
            return stack.with_tensors([tensor.to("cpu", copy=True) for tensor in stack.tensors])

        log_std = None if self.log_std is None else self.log_std.to("cpu", copy=True)
        return Networks(self.features, self.takes_vectors, copied(self.actor), copied(self.critic), log_std)


def read_networks(policy: ActorCriticPolicy) -> Networks | None:
    """
    Read a policy's networks, if it is a plain one.

    :param policy: read anew wherever it is used, for users replace modules
    :return: the networks on the policy's own tensors, or ``None``
    """
    if not _computes_as_sb3_does(policy) or any(map(_is_altered, policy.modules())) or is_patched(policy.action_dist):
        return None
    takes_vectors = _takes_vectors(policy)
    features = _as_floats if takes_vectors else _read_features(policy)
    actor = _read_stack([*_trunk(policy.pi_features_extractor), *policy.mlp_extractor.policy_net, policy.action_net])
    critic = _read_stack([*_trunk(policy.vf_features_extractor), *policy.mlp_extractor.value_net, policy.value_net])
    if actor is None or critic is None:
        return None
    log_std = policy.log_std if isinstance(policy.action_dist, DiagGaussianDistribution) else None
    networks = Networks(features, takes_vectors, actor, critic, log_std)
    return networks if _are_uniform([*networks.policy_tensors, *critic.tensors]) else None


def _computes_as_sb3_does(policy: ActorCriticPolicy) -> bool:
    """Compare methods and the types of the parts that call each other."""
    kind = type(policy)
    own = any(all(getattr(kind, name) is getattr(plain, name) for name in OWN_METHODS) for plain in PLAIN_POLICIES)
    nets = policy.mlp_extractor
    return (
        own
        and not has_global_module_hooks()
        and type(policy.action_dist) in DRAWS
        and type(nets) is MlpExtractor
        and type(nets.policy_net) is type(nets.value_net) is nn.Sequential
        and _see_alike(policy)
    )


def _see_alike(policy: ActorCriticPolicy) -> bool:
    """Check that actor and critic make the same features of an observation, up to layers with weights."""
    shared, actor, critic = policy.features_extractor, policy.pi_features_extractor, policy.vf_features_extractor
    if policy.share_features_extractor and not shared is actor is critic:
        return False
    kind = type(actor)
    return kind is type(critic) and kind in _PLAIN_EXTRACTORS and _PLAIN_EXTRACTORS[kind](actor, critic)


def _is_altered(module: nn.Module) -> bool:
    """Look for what changes a module's effect behind its type."""
    return is_hooked_or_compiled(module) or is_patched(module)


def is_patched(thing: object) -> bool:
    """
    Look for methods of a class hidden by an object's own attributes.

    :param thing: the object
    :return: whether there are any
    """
    return any(callable(getattr(type(thing), name, None)) for name in vars(thing))


def _trunk(extractor: Any) -> Iterable[Any]:
    """List the layers of a features extractor, those without parameters left out."""
    return [*extractor.cnn, *extractor.linear] if type(extractor) is NatureCNN else []


def _takes_vectors(policy: ActorCriticPolicy) -> bool:
    """Check that SB3's preprocessing does nothing: no image to scale, no choice to encode, no matrix to flatten."""
    space = policy.observation_space
    return isinstance(space, spaces.Box) and len(space.shape) == 1 and type(policy.pi_features_extractor) is FlattenExtractor


def _as_floats(observations: PyTorchObs) -> th.Tensor:
    assert isinstance(observations, th.Tensor)
    return observations.float()


def _read_features(policy: ActorCriticPolicy) -> Features:
    """Find the function from observations to the stacks' input: SB3's preprocessing, flattened unless for a CNN."""
    space, extractor = policy.observation_space, cast("Any", policy.pi_features_extractor)

    def preprocessed(observations: PyTorchObs) -> Any:
        return preprocess_obs(observations, space, normalize_images=policy.normalize_images)

    def joined(observations: PyTorchObs) -> th.Tensor:
        parts = preprocessed(observations)
        return th.cat([parts[key].flatten(1) for key in extractor.extractors], dim=1)

    def channels_last(observations: PyTorchObs) -> th.Tensor:
        assert isinstance(observations, th.Tensor)
        if observations.device.type == "cpu":  # where the convolutions' weight gradients then take less than half the time
            observations = observations.contiguous(memory_format=th.channels_last)
        if not (policy.normalize_images and is_image_space(space)):
            return observations.float()
        return observations.to(th.float32, copy=True).div_(255.0)

    if type(extractor) is FlattenExtractor:
        return lambda observations: cast("th.Tensor", preprocessed(observations).flatten(1))
    return joined if type(extractor) is CombinedExtractor else channels_last


def _read_stack(modules: Iterable[Any]) -> Stack | None:
    """Pair affine maps with the activations after them; ``None`` at the first module that does not fit."""
    layers: list[Layer] = []
    bare = False  # whether the last layer may still get an activation
    for module in modules:
        affine = _AFFINE[type(module)](module) if type(module) in _AFFINE else None
        if affine is not None:
            layers.append(Layer(affine, module.weight, module.bias, IDENTITY))
            bare = True
        elif bare and type(module) in ACTIVATIONS:
            layers[-1] = layers[-1]._replace(activation=ACTIVATIONS[type(module)](module))
            bare = False
        elif not _flattens(module) or not layers or not isinstance(layers[-1].affine, Convolution):
            return None
    return Stack(tuple(layers))


def _flattens(module: nn.Module) -> bool:
    return type(module) is nn.Flatten and (module.start_dim, module.end_dim) == (1, -1)


def _only_flatten(*extractors: Any) -> bool:
    """Check SB3's FlattenExtractors."""
    return all(_flattens(extractor.flatten) for extractor in extractors)


def _only_join(actor: Any, critic: Any) -> bool:
    """Check SB3's CombinedExtractors: the same entries of the observation, none of them an image."""
    parts = [*actor.extractors.values(), *critic.extractors.values()]
    return list(actor.extractors) == list(critic.extractors) and all(map(_flattens, parts))


def _are_sequences(*extractors: Any) -> bool:
    """Check NatureCNNs, whose layers are read one by one."""
    return all(type(part) is nn.Sequential for extractor in extractors for part in (extractor.cnn, extractor.linear))


_PLAIN_EXTRACTORS: dict[type[nn.Module], Callable[[Any, Any], bool]] = {
    FlattenExtractor: _only_flatten,
    CombinedExtractor: _only_join,
    NatureCNN: _are_sequences,
}


def _read_convolution(module: nn.Conv2d) -> Affine | None:
    if module.padding_mode != "zeros" or isinstance(module.padding, str):
        return None
    return Convolution(module.stride, module.padding, module.dilation, module.groups)


_AFFINE: dict[type[nn.Module], Callable[..., Affine | None]] = {nn.Linear: lambda _: Dense(), nn.Conv2d: _read_convolution}


def _are_uniform(tensors: list[th.Tensor]) -> bool:
    """Check for plain parameters of one type and device, without hooks on their gradients."""
    first = tensors[0]
    return all(
        type(tensor) is nn.Parameter
        and (tensor.dtype, tensor.device) == (first.dtype, first.device)
        and not has_gradient_hooks(tensor)
        for tensor in tensors
    )
