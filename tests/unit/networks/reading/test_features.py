"""Features: what SB3's preprocessing and extractors without layers make of observations."""

from __future__ import annotations

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from helpers.envs import BOX_ACTION, IMAGE, VECTOR
from helpers.oracle import some_observations
from stable_baselines3.common.torch_layers import FlattenExtractor
from torch import nn

from sb3_trpo import MlpPolicy, MultiInputPolicy
from sb3_trpo.networks.reading.features import are_rows, concatenates, extracts_numbers, features_of, some_inputs

MATRIX = spaces.Box(-1.0, 1.0, (2, 3))
PAIR = spaces.Dict(near=VECTOR, far=MATRIX)
SPACES = {
    "vector": (VECTOR, True, True),
    "doubles": (spaces.Box(-1.0, 1.0, (3,), np.float64), True, True),
    "matrix": (MATRIX, False, False),
    "choice": (spaces.Discrete(4), True, False),
    "choices": (spaces.MultiDiscrete([2, 3]), True, False),
    "bits": (spaces.MultiBinary(3), True, False),
    "bits in rows": (spaces.MultiBinary((2, 3)), False, False),
    "flat image": (IMAGE, False, False),
    "vectors": (PAIR, False, False),
}


def policy_for(space: spaces.Space) -> MlpPolicy | MultiInputPolicy:
    kind = MultiInputPolicy if isinstance(space, spaces.Dict) else MlpPolicy
    return kind(space, BOX_ACTION, lambda _: 1e-3)


@pytest.mark.parametrize(("space", "is_row", "is_vector"), SPACES.values(), ids=SPACES)
def test_features_are_what_the_policy_extracts(space, is_row, is_vector):
    policy, seen = policy_for(space), some_observations(space, 5)
    features, takes_vectors = features_of(policy)
    assert takes_vectors is is_vector
    assert are_rows(space) is is_row
    expected, _ = policy.extract_features(seen)
    th.testing.assert_close(features(seen), expected, rtol=0.0, atol=0.0)
    assert extracts_numbers(policy)
    assert concatenates(policy) is isinstance(space, spaces.Dict)


LARGEST = {kind: float(np.finfo(kind).max) for kind in (np.float32, np.float64)}
BOUNDED = {
    **{kind.__name__: spaces.Box(-largest, largest, (3,), kind) for kind, largest in LARGEST.items()},
    "tiny": spaces.Box(-1e-6, 1e-6, (3,)),
    "none": spaces.Box(-np.inf, np.inf, (3,)),
    "half": spaces.Box(0.0, np.inf, (3,)),
    "vectors": PAIR,
    **{name: SPACES[name][0] for name in ("matrix", "choice", "choices", "bits", "flat image")},
}


@pytest.mark.parametrize("space", BOUNDED.values(), ids=BOUNDED)
def test_made_up_inputs_are_of_order_one_whatever_the_bounds_and_differ(space):
    policy, before = policy_for(space), th.get_rng_state()
    one, other = some_inputs(policy)
    assert th.equal(some_inputs(policy)[0], one)
    assert not th.equal(one, other)
    assert 1e-2 < max(one.abs().max(), other.abs().max()) < 10.0
    assert one.numel() == policy.features_dim
    assert th.equal(th.get_rng_state(), before)


def test_inputs_are_not_made_up_for_images_among_others():
    space = spaces.Dict(image=spaces.Box(0, 255, (1, 36, 36), np.uint8), vector=VECTOR)
    assert some_inputs(MultiInputPolicy(space, BOX_ACTION, lambda _: 1e-3)) is None


class Own(FlattenExtractor):
    """May do anything."""


@pytest.mark.parametrize(
    "change",
    [
        lambda policy: setattr(policy, "pi_features_extractor", Own(VECTOR)),
        lambda policy: setattr(policy.vf_features_extractor, "flatten", nn.Flatten(0)),
        lambda policy: setattr(policy.vf_features_extractor, "flatten", nn.Sequential(nn.Flatten())),
    ],
    ids=["class", "other dimensions", "other module"],
)
def test_an_extractor_that_may_do_more_is_told_from_one_that_flattens(change):
    policy = policy_for(VECTOR)
    change(policy)
    assert not extracts_numbers(policy)


def test_extractors_that_read_other_entries_do_not_concatenate_alike():
    policy = policy_for(PAIR)
    policy.vf_features_extractor.extractors = nn.ModuleDict({key: nn.Flatten() for key in ("far", "near")})
    assert not concatenates(policy)
    assert not extracts_numbers(policy)


def test_images_among_others_are_not_concatenated():
    space = spaces.Dict(image=spaces.Box(0, 255, (1, 36, 36), np.uint8), vector=VECTOR)
    assert not concatenates(MultiInputPolicy(space, BOX_ACTION, lambda _: 1e-3))
