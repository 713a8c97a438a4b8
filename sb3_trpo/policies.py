"""TODO."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticCnnPolicy, ActorCriticPolicy, BasePolicy, MultiInputActorCriticPolicy
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, CombinedExtractor, NatureCNN


def check_policy(policy: Any) -> None:
    """
    Check that a policy is given by name or as a class.

    :param policy: what the constructor was given
    :raises TypeError: if it is something else
    """
    if isinstance(policy, str) or (isinstance(policy, type) and issubclass(policy, BasePolicy)):
        return
    if isinstance(policy, BasePolicy):
        name = type(policy).__name__
        raise TypeError(
            f"policy is an instance of {name}, but must be a name or a class, of which the model makes its own. To begin with "
            f"the weights of this one: model = TRPO({name}, env, policy_kwargs=...), then "
            "model.policy.load_state_dict(policy.state_dict())."
        )
    raise TypeError(
        f'policy is {policy!r}, but must be a name, such as "MlpPolicy", or a subclass of SB3\'s ActorCriticPolicy.'
    )


def check_default_type() -> None:
    """
    Check that the layers that are about to be made will fit what they are shown.

    :raises ValueError: if torch makes them of another type than float32
    """
    if th.get_default_dtype() != th.float32:
        raise ValueError(
            f"torch's default type is {th.get_default_dtype()}, but must be torch.float32 while a model is made: SB3 shows "
            "observations to policies in that type. Call th.set_default_dtype(th.float32) before, and yours again afterwards."
        )


def check_policy_class(policy: type[Any], base: type[Any]) -> None:
    """
    Check that a policy has the methods that the algorithm calls.

    :param policy: its class
    :param base: what it must be a kind of
    :raises ValueError: if it is not
    """
    if not issubclass(policy, base):
        raise ValueError(
            f"policy is {policy.__name__}, but must be {base.__name__} or a subclass of it, with an actor and a critic."
        )


def check_policy_fits(policy: type[Any], observation_space: spaces.Space[Any], aliases: Mapping[str, type[Any]]) -> None:
    """
    Check that one of our policies is for the observations that there are.

    :param policy: its class
    :param observation_space: of the environment
    :param aliases: our policies by name
    :raises ValueError: if it is for Dict observations and these are not, or the other way round
    """
    name = next((alias for alias, each in aliases.items() if each is policy), None)
    is_dict = isinstance(observation_space, spaces.Dict)
    if name is not None and name.startswith("MultiInput") is not is_dict:
        fitting = [alias for alias in aliases if alias.startswith("MultiInput") is is_dict]
        raise ValueError(
            f"policy is {name!r}, but for {type(observation_space).__name__} observations it must be {' or '.join(fitting)}."
        )


SMALLEST_IMAGE = 36
"""Pixels a side of which NatureCNN's convolutions leave one: 8 wide every 4th, (36 - 8) / 4 + 1 = 8; 4 every 2nd, 3; 3, 1."""


class SeparateExtractors(BasePolicy):
    """Turns ``share_features_extractor`` off unless it is asked for, and lets it survive ``policy.save``."""

    share_features_extractor: bool

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"share_features_extractor": False, **kwargs})

    def make_features_extractor(self) -> BaseFeaturesExtractor:
        """
        Make a features extractor, as SB3 does.

        :return: the extractor
        :raises ValueError: if SB3's own has convolutions that an image is too small for
        """
        for key, image in self._images_for_convolutions().items():
            height, width = image.shape[-2:]
            if min(height, width) < SMALLEST_IMAGE:
                name = f"The observation {key!r}" if key else "The observation"
                flat = "" if key else "take a policy that flattens images (MlpPolicy, MlpLstmPolicy), "
                raise ValueError(
                    f"{name} is an image of {height}x{width} pixels, but NatureCNN, which reads images, needs at least "
                    f"{SMALLEST_IMAGE}x{SMALLEST_IMAGE}. Enlarge it, as gymnasium.wrappers.ResizeObservation does, {flat}or "
                    "give an extractor of your own: policy_kwargs=dict(features_extractor_class=...)."
                )
        return super().make_features_extractor()

    def _images_for_convolutions(self) -> dict[str, spaces.Box]:
        """Find the images that SB3's own extractors read by convolutions, by key; the key is empty if there is one alone."""
        space, extractor = self.observation_space, self.features_extractor_class
        if extractor is NatureCNN and isinstance(space, spaces.Box) and len(space.shape) == 3:
            return {"": space}
        if extractor is not CombinedExtractor or not isinstance(space, spaces.Dict):
            return {}
        is_normalized = self.features_extractor_kwargs.get("normalized_image", False)
        parts = space.spaces.items()
        return {
            key: part for key, part in parts if isinstance(part, spaces.Box) and is_image_space(part, False, is_normalized)
        }

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {**super()._get_constructor_parameters(), "share_features_extractor": self.share_features_extractor}


class MlpPolicy(SeparateExtractors, ActorCriticPolicy):
    """SB3's ``ActorCriticPolicy``: fully connected networks on flattened observations."""


class CnnPolicy(SeparateExtractors, ActorCriticCnnPolicy):
    """SB3's ``ActorCriticCnnPolicy``: convolutional extractors for images, one for the policy and one for the critic."""


class MultiInputPolicy(SeparateExtractors, MultiInputActorCriticPolicy):
    """SB3's ``MultiInputActorCriticPolicy``: combined extractors for Dict observations, one each."""
