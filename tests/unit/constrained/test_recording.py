"""Costs of steps, and the episodes that they add up to."""

import numpy as np
import pytest
from helpers.envs import VECTOR
from hypothesis import given, settings, strategies as st
from stable_baselines3.common.buffers import RolloutBuffer

from sb3_trpo.constrained.recording import CostRecorder, follow, no_episodes, shown
from sb3_trpo.rollouts.plain_spaces import PlainSpaces


@settings(max_examples=30)
@given(st.integers(0, 2**32), st.integers(1, 3), st.integers(1, 3))
def test_episodes_are_followed_across_rollouts(seed, n_envs, n_costs):
    rng = np.random.default_rng(seed)
    costs, dones = rng.normal(size=(n_costs, 40, n_envs)), rng.random((40, n_envs)) < 0.15
    lengths, totals, underway = [], [], no_episodes(n_envs, n_costs)
    for part in (slice(0, 13), slice(13, 14), slice(14, 40)):
        episodes, underway = follow(underway, costs[:, part], dones[part])
        lengths += episodes.lengths.tolist()
        totals += episodes.costs.tolist()
    expected = []
    for env in range(n_envs):
        start = 0
        for end in np.flatnonzero(dones[:, env]):
            expected.append((end, env, end + 1 - start, costs[:, start : end + 1, env].sum(1)))
            start = end + 1
        assert underway.lengths[env] == 40 - start
        np.testing.assert_allclose(underway.costs[env], costs[:, start:, env].sum(1), atol=1e-12)
    expected.sort(key=lambda each: each[:2])
    assert lengths == [length for *_, length, _ in expected]
    np.testing.assert_allclose(
        np.reshape(totals, (-1, n_costs)), np.reshape([c for *_, c in expected], (-1, n_costs)), atol=1e-12
    )


@pytest.fixture
def recorder():
    buffer = RolloutBuffer(4, VECTOR, VECTOR, "cpu", n_envs=2)
    return CostRecorder(["a", "b"], buffer, PlainSpaces(VECTOR, VECTOR)), buffer


def test_steps_go_where_the_buffer_is(recorder):
    record, buffer = recorder
    record([{"a": 1, "b": True}, {"a": np.float32(2.5), "b": np.array(3)}], np.zeros(2, bool))
    buffer.pos = 3
    last = {"TimeLimit.truncated": True, "terminal_observation": np.ones(3, np.float32)}
    record([{"a": -4.0, "b": 0, **last}, {"a": 5.0, "b": 0}], np.ones(2, bool))
    assert record.costs[0].tolist() == [[1.0, 2.5], [0.0, 0.0], [0.0, 0.0], [-4.0, 5.0]]
    assert record.costs[1][0].tolist() == [1.0, 3.0]
    assert [(each.step, each.env_index) for each in record.truncated] == [(3, 0)]
    record.require_finite()


@pytest.mark.parametrize("wrong", [None, "much", [1.0, 2.0], np.ones(3), 10**400, 1j], ids=str)
def test_what_is_no_number_is_shown(wrong, recorder):
    record, _ = recorder
    with pytest.raises(ValueError, match=r"^info\['b'\] of environment 1 at step 0 .* is .* but must be a number") as raised:
        record([{"a": 1.0, "b": 1.0}, {"a": 1.0, "b": wrong}], np.zeros(2, bool))
    assert shown(wrong) in str(raised.value)
    assert len(str(raised.value)) < 400


@pytest.mark.parametrize("bad", [np.nan, -np.inf, 1e39])
def test_a_number_that_critics_cannot_hold_is_named(bad, recorder):
    record, _ = recorder
    record([{"a": 1.0, "b": 1.0}, {"a": bad, "b": 1.0}], np.zeros(2, bool))
    with pytest.raises(ValueError, match=r"^info\['a'\] of environment 1 at step 0 .* must be finite numbers in float32"):
        record.require_finite()
