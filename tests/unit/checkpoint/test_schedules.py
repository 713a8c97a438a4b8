"""Schedules, compared by their values."""

from functools import partial

import pytest
import torch as th
from stable_baselines3.common.utils import LinearSchedule

from sb3_trpo.checkpoint.schedules import present_value, quarters, schedule_differences, schedule_digests


def stepped(progress, at=0.6):
    return 0.01 if progress > at else 0.005


def bumped(progress, height=0.02):
    return height if 0.3 < progress < 0.31 else 0.01


def falling(progress):
    """Has no value at the end."""
    return 0.01 / progress


BETWEEN_QUARTERS = [
    (stepped, partial(stepped, at=0.7)),
    (bumped, partial(bumped, height=0.01)),
    (bumped, lambda progress: 0.01),
    (falling, lambda progress: max(0.01 / progress, 0.015)),
]


@pytest.mark.parametrize(("one", "other"), BETWEEN_QUARTERS)
def test_schedules_that_differ_anywhere_have_different_digests(one, other):
    (a,), (b,) = (schedule_digests({"target_kl": each}).values() for each in (one, other))
    assert a != b
    (text,) = schedule_differences({"target_kl": a}, {"target_kl": b})
    assert text.startswith("target_kl: ")
    assert "in between" in text


def test_schedules_with_the_same_values_are_the_same():
    same = [lambda p: 0.01 * p, lambda p: p / 100, LinearSchedule(0.01, 0.0, 1.0)]
    assert len({schedule_digests({"x": each})["x"] for each in same}) == 1, "but for rounding"


def test_schedules_are_found_in_containers_and_other_settings_are_not_schedules():
    settings = {"a": 0.5, "b": {"c": [stepped, th.nn.ReLU]}, "d": len, "e": None, "f": th.nn.Tanh()}
    assert schedule_digests(settings).keys() == {"b.c.0"}


def test_a_schedule_missing_on_one_side_is_no_difference_in_between():
    """Checkpoints of 0.1.0 hold no digests; a schedule in place of a number shows in the settings."""
    assert schedule_differences({}, {"target_kl": "a"}) == schedule_differences({"target_kl": "a"}, {}) == []


class Noting:
    """A schedule that notes its calls in a list."""

    def __init__(self):
        self.calls = []

    def __call__(self, progress):
        self.calls.append(progress)
        return 0.01 * 0.9 ** len(self.calls)


def test_evaluating_a_schedule_does_not_change_what_it_holds():
    schedule, other = Noting(), Noting()
    assert quarters(schedule) == [0.01 * 0.9**n for n in range(1, 6)]
    assert present_value(schedule, 0.5) == 0.01 * 0.9
    assert schedule_digests({"x": schedule}) == schedule_digests({"x": other})
    assert schedule_digests({"x": schedule.__call__})
    assert schedule.calls == []


def test_another_function_is_called_once():
    calls = []

    def build(space):
        calls.append(space)
        raise TypeError("no space")

    assert schedule_digests({"x": build}) == {}
    assert quarters(build) is None
    assert len(calls) == 2
