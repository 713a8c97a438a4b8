import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from helpers.envs import RandomEnv
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, NatureCNN

from sb3_trpo import TRPO
from sb3_trpo.maskable import MaskableTRPO
from sb3_trpo.recurrent import MaskableRecurrentTRPO, RecurrentTRPO

VARIANTS = [(cls, "CnnPolicy", "MultiInputPolicy") for cls in (TRPO, MaskableTRPO)]
VARIANTS += [(cls, "CnnLstmPolicy", "MultiInputLstmPolicy") for cls in (RecurrentTRPO, MaskableRecurrentTRPO)]
each_variant = pytest.mark.parametrize(("cls", "on_images", "on_dicts"), VARIANTS, ids=[cls.__name__ for cls, *_ in VARIANTS])
ADVICE = r"needs at least 36x36\. Enlarge it, .*or use your own extractor: policy_kwargs=dict\(features_extractor_class"


def image(*shape):
    return spaces.Box(0, 255, shape, np.uint8)


def build(cls, policy, space, **policy_kwargs):
    env = RandomEnv(space, spaces.Discrete(2))
    return cls(policy, env, n_steps=8, batch_size=8, policy_kwargs=policy_kwargs or None)


def dict_of(**parts):
    return spaces.Dict({"speed": spaces.Box(-1.0, 1.0, (2,), np.float32), **parts})


class Mean(BaseFeaturesExtractor):
    """Reads images of any size."""

    def __init__(self, observation_space):
        super().__init__(observation_space, 1)

    def forward(self, observations):
        return observations.flatten(1).mean(1, keepdim=True)


class Shallow(NatureCNN):
    """A subclass of NatureCNN with other layers."""

    def __init__(self, observation_space):
        BaseFeaturesExtractor.__init__(self, observation_space, 4)
        self.cnn = th.nn.Sequential(
            th.nn.Conv2d(observation_space.shape[0], 4, 3), th.nn.AdaptiveAvgPool2d(1), th.nn.Flatten()
        )
        self.linear = th.nn.Identity()


@each_variant
@pytest.mark.parametrize(
    ("shape", "size"),
    [((1, 35, 36), "35x36"), ((3, 84, 35), "84x35"), ((35, 36, 3), "35x36"), ((8, 8, 1), "8x8"), ((4, 10, 20), "10x20")],
)
def test_an_image_too_small_for_nature_cnn_is_refused_with_advice(cls, on_images, on_dicts, shape, size):
    with pytest.raises(ValueError, match=rf"^The observation is an image of {size} pixels, but NatureCNN.*{ADVICE}") as error:
        build(cls, on_images, image(*shape))
    assert "MlpPolicy, MlpLstmPolicy" in str(error.value)


@each_variant
def test_an_image_among_other_observations_is_named(cls, on_images, on_dicts):
    with pytest.raises(ValueError, match=rf"^The observation 'camera' is an image of 16x35 pixels, but NatureCNN.*{ADVICE}"):
        build(cls, on_dicts, dict_of(sky=image(1, 36, 36), camera=image(3, 16, 35)))


@each_variant
def test_the_smallest_image_works(cls, on_images, on_dicts):
    build(cls, on_images, image(1, 36, 36))
    build(cls, on_images, image(36, 36, 3))
    build(cls, on_dicts, dict_of(camera=image(36, 40, 3)))


@each_variant
def test_observations_that_are_not_convolved_may_be_small(cls, on_images, on_dicts):
    build(cls, on_dicts, dict_of(table=spaces.Box(0.0, 1.0, (3, 4, 5), np.float32), row=image(7)))


@each_variant
@pytest.mark.parametrize("extractor", [Mean, Shallow])
def test_custom_extractors_are_not_checked(cls, on_images, on_dicts, extractor):
    build(cls, on_images, image(3, 10, 12), features_extractor_class=extractor)


def test_normalised_images_are_checked_too():
    floats = spaces.Box(0.0, 1.0, (3, 20, 20), np.float32)
    with pytest.raises(ValueError, match="'camera' is an image of 20x20"):
        build(TRPO, "MultiInputPolicy", dict_of(camera=floats), normalize_images=False)
    with pytest.raises(ValueError, match="is an image of 20x20"):
        build(TRPO, "CnnPolicy", floats, normalize_images=False)


def test_vectors_are_left_to_sb3():
    with pytest.raises(AssertionError, match="NatureCNN"):
        build(TRPO, "CnnPolicy", spaces.Box(0.0, 1.0, (3,), np.float32))


class OwnKeyword(ActorCriticPolicy):
    """A policy with a keyword of its own, which happens to have the name of one of ours."""

    def __init__(self, *args, action_distribution, **kwargs):
        super().__init__(*args, **kwargs)


@pytest.mark.parametrize("keyword", ["action_distribution", "action_parameters"])
@pytest.mark.parametrize(("algorithm", "policy"), [(MaskableTRPO, "MlpPolicy"), (TRPO, ActorCriticPolicy)])
def test_keywords_that_only_our_policies_have_are_refused_for_others(algorithm, policy, keyword):
    with pytest.raises(ValueError, match=f"policy_kwargs has {keyword}.* has no such keyword"):
        algorithm(policy, RandomEnv(), policy_kwargs={keyword: None})


def test_a_policy_may_have_a_keyword_of_the_same_name():
    TRPO(OwnKeyword, RandomEnv(), policy_kwargs={"action_distribution": "own"})
