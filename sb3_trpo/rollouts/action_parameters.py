"""
Parameterized actions: a choice that decides which other parts of a hybrid action matter (Masson et al. 2016, arXiv:1509.01644).

``policy_kwargs=dict(action_parameters=...)`` says so. Of the space ``Tuple(Discrete(3), Tuple(Box, Box, Box))``, in which
option i of the choice has the parameter i::

    action_parameters={0: [(1, 0), (1, 1), (1, 2)]}

and of ``Dict(kick=Box, move=Discrete(3), run=Dict(speed=Box, turn=Box))``, where the third option takes no parameter::

    action_parameters={"move": ["run", "kick", None]}

A key is the path of a choice. Its list has one entry for each option: the path of the part that the option takes, a list of
several paths, or ``None``. A path is the index in a Tuple or the key in a Dict; on more than one level, the tuple of them.
The path of a Tuple or Dict means all parts in it. Parts that no option takes always matter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gymnasium import spaces

from sb3_trpo.distributions.product import Activity
from sb3_trpo.rollouts.hybrid_space import HybridSpace, describe

EXAMPLE = 'action_parameters={"move": ["run", ["kick", "angle"], None]}'


def read_action_parameters(given: Any, space: HybridSpace) -> list[Activity | None]:
    """
    Find out when each part of an action matters.

    :param given: the user's ``action_parameters``; ``None`` if all parts always matter
    :param space: the action space
    :return: for each part the options of its choice, or ``None`` if it always matters
    :raises ValueError: if it is no such mapping, a path is unknown, a choice is not Discrete or has another number of options,
        a choice is itself the parameter of a choice, or a part is the parameter of two; names what is wrong
    """
    if given is None:
        return [None] * len(space.parts)
    if not isinstance(given, Mapping):
        raise ValueError(f"action_parameters is {given!r}, but must be a dict from choices to their parameters: {EXAMPLE}.")
    choices = {_choice(path, space): (path, options) for path, options in given.items()}
    found: list[Activity | None] = [None] * len(space.parts)
    for choice, (path, options) in choices.items():
        for part, activity in _activities(choice, path, options, space).items():
            _check_part(part, path, choices, found[part], space)
            found[part] = activity
    return [activity if activity is None or not all(activity.options) else None for activity in found]


def _choice(path: Any, space: HybridSpace) -> int:
    """Find the part that chooses."""
    indices = space.indices(path)
    if not indices:
        raise _unknown(path, space)
    part = space.parts[indices[0]]
    if len(indices) > 1 or not isinstance(part.space, spaces.Discrete):
        there = part.space if len(indices) == 1 else "a Tuple or Dict"
        raise ValueError(
            f"action_parameters has the choice {path!r}, where the action space has {there}, but only a Discrete can choose."
        )
    return indices[0]


def _activities(choice: int, path: Any, options: Any, space: HybridSpace) -> dict[int, Activity]:
    """Find the parts that the options of one choice take, and for each of them which options do."""
    n_options = int(space.parts[choice].space.n)  # type: ignore[attr-defined]  # a Discrete
    if not isinstance(options, Sequence) or isinstance(options, (str, tuple)) or len(options) != n_options:
        raise ValueError(
            f"action_parameters has {options!r} for the choice {path!r}, but must have a list with one entry for each of its "
            f"{n_options} options: the path of the part that the option takes, a list of paths, or None. For example, "
            f"{EXAMPLE}."
        )
    taken = [_parts(entry, space) for entry in options]
    return {
        part: Activity(choice, tuple(part in parts for parts in taken)) for part in sorted(set[int]().union(*taken))
    }


def _parts(entry: Any, space: HybridSpace) -> set[int]:
    """Find the parts that one option takes."""
    paths = [] if entry is None else entry if isinstance(entry, list) else [entry]
    found: set[int] = set()
    for path in paths:
        indices = space.indices(path)
        if not indices:
            raise _unknown(path, space)
        found.update(indices)
    return found


def _check_part(
    part: int, path: Any, choices: Mapping[int, object], before: Activity | None, space: HybridSpace
) -> None:
    """Check that a part may be the parameter of a choice."""
    name = describe(space.parts[part].path)
    if part in choices:
        raise ValueError(
            f"action_parameters makes {name} a parameter of the choice {path!r}, but {name} is itself a choice, which must "
            "always matter. Give its parameters to the options of one choice: Discrete(n) with an option for each combination."
        )
    if before is not None:
        other = describe(space.parts[before.choice].path)
        raise ValueError(
            f"action_parameters makes {name} a parameter of two choices, {other} and {path!r}, but it must be of one alone."
        )


def _unknown(path: Any, space: HybridSpace) -> ValueError:
    known = ", ".join(describe(part.path) for part in space.parts)
    return ValueError(
        f"action_parameters names {path!r}, but the action space {space.structure} has nothing there. Its parts are {known}."
    )
