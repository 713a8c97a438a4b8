"""
Parameterized actions (Masson et al. 2016, arXiv:1509.01644): a choice decides which other parts of a hybrid action matter.

``policy_kwargs=dict(action_parameters=...)`` says so. Of the space ``Tuple(Discrete(3), Tuple(Box, Box, Box))``, in which
option i of the choice has the parameter i::

    action_parameters={0: ["1/0", "1/1", "1/2"]}

and of ``Dict(kick=Dict(angle=Box, power=Box), move=Discrete(3), speed=Box)``, where the third option takes no parameter::

    action_parameters={"move": ["speed", ["kick/angle", "kick/power"], None]}

A key names a choice. Its list has one entry for each option: the name of the part that the option takes, a list of several
names, or ``None``. A name is the index in a Tuple or the key in a Dict; on more than one level, these with slashes between
them. The name of a Tuple or Dict means all parts in it: ``"kick"`` would do above. Parts that no option takes always matter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gymnasium import spaces

from sb3_trpo.distributions.product import Activity
from sb3_trpo.rollouts.hybrid_space import HybridSpace, joined

EXAMPLE = 'action_parameters={"move": ["speed", ["kick/angle", "kick/power"], None]}'


def read_action_parameters(given: Any, space: HybridSpace) -> list[Activity | None]:
    """
    Find out when each part of an action matters.

    :param given: the user's ``action_parameters``; ``None`` if all parts always matter
    :param space: the action space
    :return: for each part the options of its choice, or ``None`` if it always matters
    :raises ValueError: if it is no such mapping, a name is unknown, a choice is not Discrete or has another number of options,
        a choice is given twice or is itself the parameter of a choice, or a part is the parameter of two; names what is wrong
    """
    if given is None:
        return [None] * len(space.parts)
    if not isinstance(given, Mapping):
        raise ValueError(f"action_parameters is {given!r}, but must be a dict from choices to their parameters: {EXAMPLE}.")
    choices: dict[int, tuple[Any, Any]] = {}
    for name, options in given.items():
        choice = _choice(name, space)
        if choice in choices:
            raise ValueError(f"action_parameters has the choice {name!r} twice, but one list must have all its parameters.")
        choices[choice] = (name, options)
    found: list[Activity | None] = [None] * len(space.parts)
    for choice, (name, options) in choices.items():
        for part, activity in _activities(choice, name, options, space).items():
            _check_part(part, name, choices, found[part], space)
            found[part] = activity
    return [activity if activity is None or not all(activity.options) else None for activity in found]


def _choice(name: Any, space: HybridSpace) -> int:
    """Find the part that chooses."""
    indices = space.indices(name)
    if not indices:
        raise _unknown(name, space)
    part = space.parts[indices[0]]
    if len(indices) > 1 or not isinstance(part.space, spaces.Discrete):
        there = part.space if len(indices) == 1 else "a Tuple or Dict"
        raise ValueError(
            f"action_parameters has the choice {name!r}, where the action space has {there}, but only a Discrete can choose."
        )
    return indices[0]


def _activities(choice: int, name: Any, options: Any, space: HybridSpace) -> dict[int, Activity]:
    """Find the parts that the options of one choice take, and for each of them which options do."""
    n_options = int(space.parts[choice].space.n)  # type: ignore[attr-defined]  # a Discrete
    if not isinstance(options, Sequence) or isinstance(options, (str, tuple)) or len(options) != n_options:
        raise ValueError(
            f"action_parameters has {options!r} for the choice {name!r}, but must have a list with one entry for each of its "
            f"{n_options} options: the name of the part that the option takes, a list of names, or None. For example, "
            f"{EXAMPLE}."
        )
    taken = [_parts(entry, space) for entry in options]
    return {part: Activity(choice, tuple(part in parts for parts in taken)) for part in sorted(set[int]().union(*taken))}


def _parts(entry: Any, space: HybridSpace) -> set[int]:
    """Find the parts that one option takes."""
    names = [] if entry is None else entry if isinstance(entry, list) else [entry]
    found: set[int] = set()
    for name in names:
        indices = space.indices(name)
        if not indices:
            raise _unknown(name, space)
        found.update(indices)
    return found


def _check_part(part: int, name: Any, choices: Mapping[int, object], before: Activity | None, space: HybridSpace) -> None:
    """Check that a part may be the parameter of a choice."""
    own = space.parts[part].name
    if part in choices:
        raise ValueError(
            f"action_parameters makes {own!r} a parameter of the choice {name!r}, but {own!r} is itself a choice, which must "
            "always matter. Give its parameters to the options of one choice: Discrete(n) with an option for each combination."
        )
    if before is not None:
        other = space.parts[before.choice].name
        raise ValueError(
            f"action_parameters makes {own!r} a parameter of two choices, {other!r} and {name!r}, but it must be of one alone."
        )


def _unknown(name: Any, space: HybridSpace) -> ValueError:
    known = ", ".join(repr(part.name) for part in space.parts)
    advice = f" Write {name!r} as {joined(name)!r}." if isinstance(name, tuple) else ""
    return ValueError(
        f"action_parameters names {name!r}, but the action space {space.structure} has nothing of this name. Its parts are "
        f"{known}.{advice}"
    )
