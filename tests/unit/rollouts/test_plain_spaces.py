"""Spaces that SB3's policies do not take as they are: there and back, and trained on."""

from collections import OrderedDict

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from helpers.envs import VECTOR
from helpers.rollouts import assert_close, assert_same_buffers, policy_for
from hypothesis import given, strategies as st
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_trpo import TRPO
from sb3_trpo.rollouts.plain_spaces import PlainSpaces, from_plain, map_parts, plain, to_plain

CHOICE = spaces.Discrete(3)

starts = st.integers(-5, 5)
tables = st.lists(st.lists(st.integers(1, 4), min_size=2, max_size=2), min_size=1, max_size=3)
discrete = st.builds(lambda n, start: spaces.Discrete(n, start=start), st.integers(1, 5), starts)
multi_discrete = st.builds(
    lambda table, start: spaces.MultiDiscrete(table, start=np.full_like(np.array(table), start)), tables, starts
)
boxes = st.sampled_from([spaces.Box(-1.0, 1.0, ()), spaces.Box(0, 9, (), np.int64), VECTOR, spaces.Box(-1.0, 1.0, (2, 2))])
bits = st.sampled_from([spaces.MultiBinary(3), spaces.MultiBinary((2, 3)), spaces.MultiBinary([3])])
simple = discrete | multi_discrete | boxes | bits


@given(simple, st.integers(0, 2**31), st.sampled_from([(), (1,), (4,)]))
def test_values_are_in_the_plain_space_and_come_back(space, seed, leading):
    space.seed(seed)
    samples = np.array([space.sample() for _ in range(int(np.prod(leading)))]).reshape((*leading, *space.shape))
    there = np.asarray(to_plain(space, samples))
    target = plain(space)
    assert there.dtype == samples.dtype
    assert all(target.contains(row.astype(target.dtype)) for row in there.reshape((-1, *target.shape)))
    back = from_plain(space, there)
    assert back.dtype == samples.dtype
    np.testing.assert_array_equal(back, samples)


def test_the_parts_of_a_dict_keep_their_order():
    """Policies join them in it: sorted, a saved policy would see other numbers."""
    space = spaces.Dict(OrderedDict(z=spaces.MultiBinary([2, 2]), b=VECTOR, a=CHOICE))
    assert [*plain(space)] == [*space] == ["z", "b", "a"]
    model = TRPO("MultiInputPolicy", Strict(space, CHOICE), n_steps=32, batch_size=32, device="cpu")
    assert [*model.policy.features_extractor.extractors] == ["z", "b", "a"]


@given(st.dictionaries(st.sampled_from("abc"), simple, min_size=1))
def test_a_dict_is_plain_part_by_part(parts):
    space = spaces.Dict(parts)
    sample = space.sample()
    encoded = to_plain(space, sample)
    assert encoded.keys() == sample.keys()
    for key, part in parts.items():
        np.testing.assert_array_equal(encoded[key], to_plain(part, sample[key]))


def test_values_by_hand():
    space = spaces.MultiDiscrete([[2, 3], [4, 5]], start=[[0, 10], [20, 30]])
    assert plain(space) == spaces.MultiDiscrete([2, 3, 4, 5])
    assert to_plain(space, np.array([[[1, 12], [20, 34]]])).tolist() == [[1, 2, 0, 4]]
    assert from_plain(space, np.array([1, 2, 0, 4])).tolist() == [[1, 12], [20, 34]]
    assert from_plain(spaces.Discrete(3, start=-1), np.array([0, 1, 2])).tolist() == [-1, 0, 1]


@pytest.mark.parametrize("space", [VECTOR, CHOICE, spaces.MultiDiscrete([2, 3]), spaces.MultiBinary(2), spaces.Dict(a=VECTOR)])
def test_plain_spaces_are_left_as_they_are(space):
    assert plain(space) is space
    both = PlainSpaces(space, CHOICE)
    sample = space.sample()
    assert both.encode(sample) is sample
    actions = np.array([1])
    assert both.decode(actions) is actions


class Strict(gym.Env):
    """Refuses actions that are not in its space; the reward is their sum. Episodes are cut off after seven steps."""

    def __init__(self, observation_space, action_space):
        self.observation_space, self.action_space = observation_space, action_space
        self.seen = set()

    def reset(self, *, seed=None, options=None):
        if seed is not None:
            self.observation_space.seed(seed)
        self.n_steps = 0
        return self.observation_space.sample(), {}

    def step(self, action):
        assert self.action_space.contains(np.asarray(action)), f"{action!r} is not in {self.action_space}"
        self.seen.add(np.asarray(action).tobytes())
        self.n_steps += 1
        return self.observation_space.sample(), float(np.sum(action)), False, self.n_steps == 7, {}


OBSERVATIONS = {
    "option from 5": spaces.Discrete(4, start=5),
    "option from -1": spaces.Discrete(3, start=-1),
    "table": spaces.MultiDiscrete([[2, 3], [4, 5]]),
    "choices from": spaces.MultiDiscrete([3, 4], start=[1, 2]),
    "number": spaces.Box(-1.0, 1.0, ()),
    "choices of bytes": spaces.MultiDiscrete([100, 100, 100], dtype=np.uint8),
    "dict": spaces.Dict(number=spaces.Box(-1.0, 1.0, ()), table=spaces.MultiDiscrete([[2, 3], [4, 5]]), vector=VECTOR),
}
ACTIONS = {
    "option from 2": spaces.Discrete(3, start=2),
    "option from -1": spaces.Discrete(3, start=-1),
    "table": spaces.MultiDiscrete([[2, 3], [4, 5]]),
    "choices from": spaces.MultiDiscrete([3, 4], start=[1, 2]),
    "choices of bytes": spaces.MultiDiscrete([100, 100, 100], dtype=np.int8),
    "bits in a table": spaces.MultiBinary((2, 3)),
    "bits of a list": spaces.MultiBinary([3]),
    "number": spaces.Box(-1.0, 1.0, ()),
}
CASES = {
    **{f"observe {name}": (space, CHOICE) for name, space in OBSERVATIONS.items()},
    **{f"act {name}": (VECTOR, space) for name, space in ACTIONS.items()},
    "both": (OBSERVATIONS["dict"], ACTIONS["table"]),
}


def model_of(case: str, is_fast: bool) -> TRPO:
    settings = {"n_steps": 32, "batch_size": 32, "n_critic_updates": 2, "seed": 0, "device": "cpu"}
    return TRPO(policy_for(is_fast, CASES[case][0]), Strict(*CASES[case]), **settings)


@pytest.mark.parametrize("is_fast", [True, False], ids=["fast", "general"])
@pytest.mark.parametrize("case", CASES)
def test_odd_spaces_are_trained_on(case, is_fast, tmp_path):
    model = model_of(case, is_fast)
    observation_space, action_space = CASES[case]
    model.learn(96)
    assert (model.observation_space, model.action_space) == (observation_space, action_space)
    assert model.policy_outcome.value == "accepted"
    assert len(model.env.envs[0].unwrapped.seen) > 1
    observation = model.env.reset()
    actions, _ = model.predict(observation)
    assert action_space.contains(np.asarray(actions[0]))
    one = map_parts(lambda part: part[0], observation)
    assert action_space.contains(np.asarray(model.predict(one)[0], action_space.dtype))
    evaluate_policy(model, Strict(observation_space, action_space), n_eval_episodes=2, warn=False)

    model.save(tmp_path / "model")
    loaded = TRPO.load(tmp_path / "model", env=Strict(observation_space, action_space))
    both = [each.predict(observation, deterministic=True)[0] for each in (model, loaded)]
    np.testing.assert_array_equal(*both)
    loaded.learn(32, reset_num_timesteps=False)


@pytest.mark.parametrize("case", CASES)
def test_both_loops_keep_the_same(case):
    models = []
    for is_fast in (True, False):  # the constructor seeds the generators that learn() draws from
        model = model_of(case, is_fast)
        model.train = lambda: None
        models.append(model.learn(32))
    fast, general = models
    assert_same_buffers(fast.rollout_buffer, general.rollout_buffer)
    assert_close(fast._last_obs, general._last_obs, 0.0)
