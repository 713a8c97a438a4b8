"""
The policies behind the aliases: SB3's own, with separate feature extractors for policy and critic by default.

The critic must leave everything alone that the policy depends on, so with a shared extractor it could learn nothing about
images but its last layers. ``policy_kwargs=dict(share_features_extractor=True)`` shares it all the same.
"""

from __future__ import annotations

from typing import Any

from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticCnnPolicy, ActorCriticPolicy, BasePolicy, MultiInputActorCriticPolicy
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, CombinedExtractor, NatureCNN

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
