"""From observations to the input of a policy's first layer: SB3's preprocessing, and extractors without layers."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.preprocessing import is_image_space, preprocess_obs
from stable_baselines3.common.torch_layers import CombinedExtractor, FlattenExtractor
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import nn

Features = Callable[[PyTorchObs], th.Tensor]
"""Turns observations, a tensor or a dict of tensors, into the input of a stack."""


def are_rows(space: spaces.Space[Any]) -> bool:
    """
    Check whether SB3's preprocessing returns a row of numbers for each observation.

    :param space: the observation space
    :return: whether it does, rather than an image or a dict
    """
    return isinstance(space, spaces.Discrete | spaces.MultiDiscrete) or len(space.shape or ()) == 1


def some_inputs(policy: ActorCriticPolicy) -> th.Tensor | None:
    """
    Make up what the policy's first modules with layers may be given.

    :param policy: the policy
    :return: for two states, the same at each call; ``None`` for Dict observations that are not only concatenated
    """
    space: spaces.Space[Any] = policy.observation_space
    if isinstance(space, spaces.Dict):
        if not concatenates(policy):
            return None
        parts, _ = policy.obs_to_tensor({key: _some_observations(part) for key, part in space.spaces.items()})
        return _read_features(policy, are_images=False)(parts)
    observations, _ = policy.obs_to_tensor(_some_observations(space))
    return cast("th.Tensor", preprocess_obs(observations, space, normalize_images=policy.normalize_images))


def _some_observations(space: spaces.Space[Any]) -> np.ndarray:
    """Make up two observations. Numbers are of order one, whatever the bounds: extreme ones would overflow, or hide errors."""
    if isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.floating):
        return np.random.default_rng(0).standard_normal((2, *space.shape)).astype(space.dtype)
    own = copy.deepcopy(space)  # so that the policy's space keeps its generator
    own.seed(0)
    return np.stack([own.sample() for _ in range(2)])


def features_of(policy: ActorCriticPolicy, are_images: bool = False) -> tuple[Features, bool]:
    """
    Read what a policy does before its first layer.

    :param policy: the policy
    :param are_images: whether the first layer is a convolution
    :return: the function, and whether its results are the numbers of the observation, unchanged
    """
    takes_vectors = _takes_vectors(policy)
    return (_as_floats if takes_vectors else _read_features(policy, are_images)), takes_vectors


def _takes_vectors(policy: ActorCriticPolicy) -> bool:
    """Check that SB3's preprocessing has nothing to do: no image to scale, no choice to encode, no matrix to flatten."""
    space = policy.observation_space
    return isinstance(space, spaces.Box) and len(space.shape) == 1


def _as_floats(observations: PyTorchObs) -> th.Tensor:
    assert isinstance(observations, th.Tensor)
    return observations.float()


def _read_features(policy: ActorCriticPolicy, are_images: bool) -> Features:
    """Choose the function from observations to the stacks' input: SB3's preprocessing, flattened except for convolutions."""
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

    if are_images:
        return channels_last
    if isinstance(space, spaces.Dict):
        return concatenated
    return lambda observations: cast("th.Tensor", preprocessed(observations).flatten(1))


def extracts_numbers(policy: ActorCriticPolicy) -> bool:
    """
    Check that features are nothing but the numbers of an observation, as SB3's preprocessing returns them.

    :param policy: the policy
    :return: whether its extractors only flatten and concatenate
    """
    pair: list[Any] = [policy.pi_features_extractor, policy.vf_features_extractor]
    return concatenates(policy) or all(type(each) is FlattenExtractor and _flattens(each.flatten) for each in pair)


def _flattens(module: nn.Module) -> bool:
    return type(module) is nn.Flatten and (module.start_dim, module.end_dim) == (1, -1)


def concatenates(policy: ActorCriticPolicy) -> bool:
    """
    Check that both extractors only concatenate entries of an observation.

    :param policy: the policy
    :return: whether they are CombinedExtractors that read the same entries, in the same order, and none by convolutions
    """
    actor, critic = cast("Any", policy.pi_features_extractor), cast("Any", policy.vf_features_extractor)
    if not type(actor) is type(critic) is CombinedExtractor:
        return False
    parts = [*actor.extractors.values(), *critic.extractors.values()]
    return list(actor.extractors) == list(critic.extractors) and all(map(_flattens, parts))
