"""Episodes that a time limit has cut off: they are found with copies of what followed them."""

import numpy as np
import pytest
from gymnasium import spaces

from sb3_trpo.rollouts.collection.truncation import truncated_episodes
from sb3_trpo.rollouts.plain_spaces import PlainSpaces

PLAIN = PlainSpaces(spaces.Box(-1.0, 1.0, (2,)), spaces.Discrete(2))


def info(last, is_cut):
    return {"terminal_observation": np.array(last, np.float32), "TimeLimit.truncated": is_cut}


def test_only_episodes_that_a_time_limit_has_cut_off_are_found():
    infos = [info([1.0, 2.0], True), info([3.0, 4.0], False), info([5.0, 6.0], True), {}]
    found = truncated_episodes(7, np.array([0, 1, 2]), infos, PLAIN)
    assert [(each.step, each.env_index) for each in found] == [(7, 0), (7, 2)]
    infos[0]["terminal_observation"][:] = 0.0  # the environment may overwrite it
    assert found[0].last_observation.tolist() == [1.0, 2.0]
    assert truncated_episodes(7, np.array([], int), infos, PLAIN) == []


def test_observations_are_those_of_the_plain_space():
    plain = PlainSpaces(spaces.Discrete(3, start=5), spaces.Discrete(2))
    (found,) = truncated_episodes(
        0, np.array([0]), [{"terminal_observation": np.int64(6), "TimeLimit.truncated": True}], plain
    )
    assert found.last_observation == 1


def test_an_observation_that_is_not_finite_is_refused():
    with pytest.raises(ValueError, match=r"nan"):
        truncated_episodes(3, np.array([0]), [info([np.nan, 0.0], True)], PLAIN)
