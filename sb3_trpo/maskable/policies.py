"""The policies of ``MaskableTRPO``, which can be chosen by name."""

from __future__ import annotations

from sb3_trpo.extras import CONTRIB, needs
from sb3_trpo.policies import SeparateExtractors

with needs(*CONTRIB):
    from sb3_contrib.common.maskable.policies import (
        MaskableActorCriticCnnPolicy,
        MaskableActorCriticPolicy,
        MaskableMultiInputActorCriticPolicy,
    )


class MlpPolicy(SeparateExtractors, MaskableActorCriticPolicy):
    """sb3-contrib's ``MaskableActorCriticPolicy``: fully connected networks on flattened observations."""


class CnnPolicy(SeparateExtractors, MaskableActorCriticCnnPolicy):
    """sb3-contrib's ``MaskableActorCriticCnnPolicy``: convolutional extractors, one for the policy and one for the critic."""


class MultiInputPolicy(SeparateExtractors, MaskableMultiInputActorCriticPolicy):
    """sb3-contrib's ``MaskableMultiInputActorCriticPolicy``: combined extractors for Dict observations, one each."""
