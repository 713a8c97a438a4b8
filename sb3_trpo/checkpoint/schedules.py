"""Schedules: settings that are functions of the progress remaining. They are compared by their values."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

QUARTERS = (1.0, 0.75, 0.5, 0.25, 0.0)
"""Progress remaining at which a schedule's values are shown."""
STEPS = 1000
"""
Number of equal parts of the run at whose ends two schedules are compared. Two that agree there differ for less than a
thousandth of the run at a stretch: for at most one update in runs of up to a thousand. A schedule that takes a millisecond to
evaluate costs a second, once at the start.
"""
DIGITS = 9
"""Significant digits that are compared: an exponential's last bits differ between systems; deliberate changes are larger."""


def quarters(setting: Any) -> list[float] | None:
    """
    Compute a schedule's values at each quarter of the run.

    :param setting: a setting of an algorithm
    :return: five values; ``None`` if it is no schedule, or has no value at one of the quarters
    """
    values: list[float] = []
    for value in _values(setting, QUARTERS):
        if isinstance(value, str):
            return None
        values.append(value)
    return values or None


def present_value(setting: Any, progress_remaining: float) -> float | None:
    """
    Compute a schedule's value.

    :param setting: a setting of an algorithm
    :param progress_remaining: from 1 to 0
    :return: the value; ``None`` if it is no schedule, or has no value there
    """
    value = next(_values(setting, (progress_remaining,)), None)
    return value if isinstance(value, float) else None


def schedule_digests(settings: dict[str, Any]) -> dict[str, str]:
    """
    Compute a digest of each schedule among settings.

    :param settings: settings by name, perhaps nested
    :return: digests of the schedules' values all along the run, by name
    """
    found = {}
    for name, schedule in _callables(settings, ""):
        values = _values(schedule, (1.0 - step / STEPS for step in range(STEPS + 1)))
        first = next(values)
        if isinstance(first, float):  # a function of something else need not be called a thousand times
            text = " ".join(each if isinstance(each, str) else f"{each:.{DIGITS}g}" for each in (first, *values))
            found[name] = hashlib.sha256(text.encode()).hexdigest()[:16]
    return found


def schedule_differences(saved: dict[str, str], live: dict[str, str]) -> list[str]:
    """
    Compare schedules that have the same value at each quarter of the run.

    :param saved: digests in a checkpoint
    :param live: digests of the run that is to continue
    :return: one text for each schedule that differs
    """
    return [
        f"{name}: the same schedule in the checkpoint and here at 100, 75, 50, 25 and 0% of what remains, but not in between"
        for name in sorted(saved.keys() & live.keys())
        if saved[name] != live[name]
    ]


def _values(setting: Any, points: Iterable[float]) -> Iterator[float | str]:
    """
    Evaluate a schedule; where it raises, give the error's name.

    An object is copied first, since it may count its calls, and looking at a schedule must not change it.
    """
    if not _is_function(setting):
        return
    schedule = _copy_of(setting)
    for progress_remaining in points:
        try:
            yield float(schedule(progress_remaining))
        except Exception as error:  # the user's function may raise anything
            yield type(error).__name__


def _copy_of(schedule: Callable[..., Any]) -> Callable[..., Any]:
    try:
        return copy.deepcopy(schedule)
    except Exception:  # it cannot be copied
        return schedule


def _callables(value: Any, name: str) -> Iterator[tuple[str, Callable[..., Any]]]:
    """Find everything callable among settings, also in containers."""
    if isinstance(value, dict):
        for key, each in value.items():
            yield from _callables(each, f"{name}.{key}" if name else str(key))
    elif isinstance(value, (list, tuple)):
        for index, each in enumerate(value):
            yield from _callables(each, f"{name}.{index}")
    elif _is_function(value):
        yield name, value


def _is_function(value: Any) -> bool:
    return callable(value) and not isinstance(value, type)
