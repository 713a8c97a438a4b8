"""
The policies behind the aliases, and the checks of the policy that a user gives.

The policies are SB3's own, with separate features extractors for policy and critic by default. The critic must not change
anything that the policy depends on, so with a shared extractor it could train nothing but its last layers.
``policy_kwargs=dict(share_features_extractor=True)`` shares the extractor all the same.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

import torch as th
from gymnasium import spaces
from stable_baselines3.common.distributions import DiagGaussianDistribution, Distribution, make_proba_distribution
from stable_baselines3.common.policies import ActorCriticCnnPolicy, ActorCriticPolicy, BasePolicy, MultiInputActorCriticPolicy
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, CombinedExtractor, NatureCNN

from sb3_trpo.distributions.policy import AnyDistributionPolicy
from sb3_trpo.distributions.product import ProductDistribution
from sb3_trpo.distributions.registry import chosen_distribution
from sb3_trpo.rollouts.action_parameters import read_action_parameters
from sb3_trpo.rollouts.hybrid_space import HybridSpace

SMALLEST_IMAGE = 36
"""
Pixels per side of the smallest image that NatureCNN can read.

Its convolutions take (kernel, stride) = (8, 4), (4, 2) and (3, 1): 36 pixels become 8, then 3, then 1.
"""


class SeparateExtractors(BasePolicy):
    """Mixin that sets ``share_features_extractor=False`` by default and keeps the setting through ``policy.save``."""

    share_features_extractor: bool

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"share_features_extractor": False, **kwargs})

    def make_features_extractor(self) -> BaseFeaturesExtractor:
        """
        Make a features extractor.

        :return: the extractor
        :raises ValueError: if an image is too small for the convolutions of SB3's own extractors
        """
        for key, image in self._images_for_convolutions().items():
            height, width = image.shape[-2:]
            if min(height, width) < SMALLEST_IMAGE:
                raise _image_error(key, height, width)
        return super().make_features_extractor()

    def _images_for_convolutions(self) -> dict[str, spaces.Box]:
        """Find the images that SB3's own extractors read by convolutions, by key. A single image has an empty key."""
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


class ChosenDistribution(AnyDistributionPolicy):
    """
    Mixin that lets the user choose the action distribution by name, and keeps the choice through ``policy.save``.

    A Tuple or Dict of actions has a distribution for each of its parts.

    :param action_distribution: ``"beta"``; ``None`` for the one that SB3 has for the action space. Of a Tuple or Dict, the
        distribution of each Box
    :param action_parameters: for a Tuple or Dict of actions, which parts each option of a choice needs
        (``rollouts/action_parameters.py``); ``None`` if all parts always matter
    :raises ValueError: if the name is unknown, or the distribution does not fit the action space or another argument
    """

    def __init__(
        self,
        *args: Any,
        action_distribution: str | None = None,
        action_parameters: Mapping[Any, list[Any]] | None = None,
        **kwargs: Any,
    ) -> None:
        self.action_distribution = action_distribution
        self.action_parameters = action_parameters
        super().__init__(*args, **kwargs)

    def _choose_distribution(self) -> Distribution | None:
        if isinstance(self.action_space, HybridSpace):
            return self._choose_product(self.action_space)
        if self.action_parameters is not None:
            raise ValueError(
                "action_parameters is for a Tuple or Dict of actions, in which a Discrete chooses, but the action space is "
                f"{self.action_space}."
            )
        return chosen_distribution(self.action_distribution, self.action_space, self.use_sde, self.log_std_init)

    def _choose_product(self, space: HybridSpace) -> Distribution:
        if self.use_sde:
            raise ValueError(f"use_sde is True, but gSDE is for a single Box of actions, and not for {space.structure}.")
        name, flat = self.action_distribution, [part.flat for part in space.parts]
        if name is not None and not any(isinstance(each, spaces.Box) for each in flat):
            raise ValueError(f"action_distribution is {name!r}, but {space.structure} has no Box of actions.")
        parts = [
            (chosen_distribution(name, each, log_std_init=self.log_std_init) if isinstance(each, spaces.Box) else None)
            or make_proba_distribution(each)
            for each in flat
        ]
        n_numbers = [part.n_numbers for part in space.parts]
        return ProductDistribution(parts, n_numbers, read_action_parameters(self.action_parameters, space), self.log_std_init)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        chosen = {"action_distribution": self.action_distribution, "action_parameters": self.action_parameters}
        return {**super()._get_constructor_parameters(), **chosen}


class MlpPolicy(SeparateExtractors, ChosenDistribution):
    """SB3's ``ActorCriticPolicy``: fully connected networks on flattened observations."""


class CnnPolicy(SeparateExtractors, ChosenDistribution, ActorCriticCnnPolicy):
    """SB3's ``ActorCriticCnnPolicy``: convolutional features extractors, one for the policy and one for the critic."""


class MultiInputPolicy(SeparateExtractors, ChosenDistribution, MultiInputActorCriticPolicy):
    """SB3's ``MultiInputActorCriticPolicy`` for Dict observations: combined extractors, one for each network."""


def check_policy(policy: Any) -> None:
    """
    Check that a policy is a name or a class.

    :param policy: the constructor's argument
    :raises TypeError: if it is anything else, an instance of a policy for example
    """
    if isinstance(policy, str) or (isinstance(policy, type) and issubclass(policy, BasePolicy)):
        return
    if isinstance(policy, BasePolicy):
        name = type(policy).__name__
        raise TypeError(
            f"policy is an instance of {name}, but must be a name or a class; the model makes the instance. To start from "
            f"the weights of this one: model = TRPO({name}, env, policy_kwargs=...), then "
            "model.policy.load_state_dict(policy.state_dict())."
        )
    raise TypeError(
        f'policy is {policy!r}, but must be a name, such as "MlpPolicy", or a subclass of SB3\'s ActorCriticPolicy.'
    )


def unknown_policy_error(name: str, algorithm: str, aliases: Iterable[str]) -> ValueError:
    """
    Explain that no policy has a name.

    :param name: what was given
    :param algorithm: name of the algorithm's class
    :param aliases: names of its policies
    :return: the error
    """
    return ValueError(
        f"policy is {name!r}, but {algorithm} knows {', '.join(aliases)}. For action masks use sb3_trpo.maskable, for "
        "policies with an LSTM sb3_trpo.recurrent; give other policies as classes."
    )


def check_default_type() -> None:
    """
    Check that torch makes new layers in the type in which SB3 passes observations.

    :raises ValueError: if torch's default type is not float32
    """
    if th.get_default_dtype() != th.float32:
        raise ValueError(
            f"torch's default type is {th.get_default_dtype()}, but must be torch.float32 while a model is made: SB3 passes "
            "observations to policies in that type. Call th.set_default_dtype(th.float32) before, and yours again afterwards."
        )


def check_policy_class(policy: type[Any], base: type[Any]) -> None:
    """
    Check that a policy class has the methods that the algorithm calls.

    :param policy: class of the policy
    :param base: class that it must inherit from
    :raises ValueError: if it does not
    """
    if not issubclass(policy, base):
        raise ValueError(
            f"policy is {policy.__name__}, but must be {base.__name__} or a subclass of it, with an actor and a critic."
        )


def check_policy_fits(
    policy: type[Any], observation_space: spaces.Space[Any], aliases: Mapping[str, type[Any]], kwargs: Mapping[str, Any]
) -> None:
    """
    Check that one of our policies can read the observations, and that any other knows the keywords that ours have.

    :param policy: class of the policy
    :param observation_space: space of the environment
    :param aliases: our policy classes by name
    :param kwargs: keywords for the policy
    :raises ValueError: if it is for Dict observations and these are not, or the other way round; or if it does not have one of
        the keywords of :class:`ChosenDistribution`
    """
    for keyword in ("action_distribution", "action_parameters"):
        if keyword in kwargs and not _has_keyword(policy, keyword):
            raise ValueError(
                f"policy_kwargs has {keyword}, which is for the policies of TRPO and RecurrentTRPO and their subclasses: "
                f"class MyPolicy(sb3_trpo.MlpPolicy), for example. The policy is {policy.__name__}, which has no such keyword."
            )
    name = next((alias for alias, each in aliases.items() if each is policy), None)
    is_dict = isinstance(observation_space, spaces.Dict)
    if name is not None and name.startswith("MultiInput") is not is_dict:
        fitting = [alias for alias in aliases if alias.startswith("MultiInput") is is_dict]
        raise ValueError(
            f"policy is {name!r}, but for {type(observation_space).__name__} observations it must be {' or '.join(fitting)}."
        )


def _has_keyword(policy: type[Any], keyword: str) -> bool:
    """Look through all constructors, since most pass on what they do not know."""
    constructors = [vars(base)["__init__"] for base in policy.__mro__ if "__init__" in vars(base)]
    return any(keyword in inspect.signature(each).parameters for each in constructors)


def check_hybrid_policy(policy: ActorCriticPolicy, action_space: spaces.Space[Any]) -> None:
    """
    Check that a policy does not take a Tuple or Dict of actions for a Box.

    :param policy: the policy
    :param action_space: plain space of the actions
    :raises ValueError: if it does, because its class is not derived from one of ours
    """
    if isinstance(action_space, HybridSpace) and isinstance(policy.action_dist, DiagGaussianDistribution):
        raise ValueError(
            f"policy is {type(policy).__name__}, but for {action_space.structure} it must be a policy of sb3_trpo or a "
            "subclass of one: class MyPolicy(sb3_trpo.MlpPolicy). SB3's own would take every number for a Gaussian action."
        )


def _image_error(key: str, height: int, width: int) -> ValueError:
    name = f"The observation {key!r}" if key else "The observation"
    flat = "" if key else "take a policy that flattens images (MlpPolicy, MlpLstmPolicy), "
    return ValueError(
        f"{name} is an image of {height}x{width} pixels, but NatureCNN, which reads images, needs at least "
        f"{SMALLEST_IMAGE}x{SMALLEST_IMAGE}. Enlarge it, for example with gymnasium.wrappers.ResizeObservation, {flat}or "
        "use your own extractor: policy_kwargs=dict(features_extractor_class=...)."
    )
