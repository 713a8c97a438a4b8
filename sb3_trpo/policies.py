"""
The policies behind the aliases: SB3's own, with separate feature extractors for policy and critic by default.

The critic must leave everything alone that the policy depends on, so with a shared extractor it could learn nothing about
images but its last layers. ``policy_kwargs=dict(share_features_extractor=True)`` shares it all the same.
"""

from __future__ import annotations

from typing import Any

from stable_baselines3.common.policies import ActorCriticCnnPolicy, ActorCriticPolicy, BasePolicy, MultiInputActorCriticPolicy


class SeparateExtractors(BasePolicy):
    """Turns ``share_features_extractor`` off unless it is asked for, and lets it survive ``policy.save``."""

    share_features_extractor: bool

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"share_features_extractor": False, **kwargs})

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {**super()._get_constructor_parameters(), "share_features_extractor": self.share_features_extractor}


class MlpPolicy(SeparateExtractors, ActorCriticPolicy):
    """SB3's ``ActorCriticPolicy``: fully connected networks on flattened observations."""


class CnnPolicy(SeparateExtractors, ActorCriticCnnPolicy):
    """SB3's ``ActorCriticCnnPolicy``: convolutional extractors for images, one for the policy and one for the critic."""


class MultiInputPolicy(SeparateExtractors, MultiInputActorCriticPolicy):
    """SB3's ``MultiInputActorCriticPolicy``: combined extractors for Dict observations, one each."""
