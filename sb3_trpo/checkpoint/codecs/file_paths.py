"""
Places in a file system, among the attributes of environments, callbacks and the model.

The user's script says where files are: a run may go on with another log folder. So an attribute that looks like a path is left
to the script, as long as the run does not change it. One that the run does change is state, like any other.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum
from pathlib import PurePath
from typing import Any

OF_A_FILE = re.compile(r"(.*_)?(path|folder|dir|directory|file|filename)s?", re.IGNORECASE)
A_PLACE = re.compile(r"(~?/|[A-Za-z]:[/\\])\w")
AWAY = re.compile(r"[~/\\]|[A-Za-z]:|(.*[/\\])?\.\.([/\\]|$)", re.DOTALL)


class Verdict(Enum):
    """What to do with an attribute."""

    STATE = "it is recorded and restored like any other"
    CHANGED = "it is recorded, and restored although it looks like a path: the run has changed it"
    LEFT = "it is left to the script"


@dataclass
class Places:
    """
    The paths that were there when ``learn()`` began, and those that the run has changed since.

    :param given: by the script: texts by where they are found
    :param changed: where the run has changed a path, and whether it can be restored
    :param is_marking: whether all that it is asked about is given by the script, as it is when training begins
    """

    given: dict[str, str] = field(default_factory=dict)
    changed: dict[str, bool] = field(default_factory=dict)
    is_marking: bool = True

    def judge(self, where: str, name: str, value: Any) -> Verdict:
        """
        Tell whether an attribute is the script's.

        :param where: it is found, unique
        :param name: of the attribute
        :param value: of it
        :return: the verdict
        """
        is_place = is_file_path(name, value)
        if self.is_marking:
            self.given |= {where: str(value)} if is_place else {}
        elif where in self.changed or (not self._is_given(where, str(value)) if is_place else where in self.given):
            can_be_restored = not isinstance(value, PurePath) and not points_away(value)
            self.changed[where] = can_be_restored
            return Verdict.CHANGED if can_be_restored else Verdict.LEFT
        return Verdict.LEFT if is_place else Verdict.STATE

    def _is_given(self, where: str, text: str) -> bool:
        """Compare with what was there; an object that is made in the course of the run may repeat what another was given."""
        if where in self.given:
            return self.given[where] == text
        name = where.rpartition("/")[2]
        alike = (each for place, each in self.given.items() if place.rpartition("/")[2] == name and place not in self.changed)
        return bool(text) and text in alike

    def follow(self, changed: Iterable[str]) -> None:
        """
        End the marking, and go on from a checkpoint: what had been changed before it stays state.

        :param changed: where that was
        """
        self.is_marking = False
        self.changed |= dict.fromkeys(changed, True)

    def beyond(self) -> list[str]:
        """
        Name what the run has changed and no checkpoint restores.

        :return: where that is
        """
        return sorted(where for where, can_be_restored in self.changed.items() if not can_be_restored)

    def parts(self, where: str, n: int) -> list[Places]:
        """
        Split off what belongs to numbered parts.

        :param where: they are found
        :param n: how many there are
        :return: the places of each
        """
        parts = [Places(is_marking=self.is_marking) for _ in range(n)]
        prefix = f"{where}/"
        for kind in ("given", "changed"):
            for place, value in getattr(self, kind).items():
                index, _, rest = place.removeprefix(prefix).partition("/")
                if place.startswith(prefix) and index.isdecimal() and int(index) < n:
                    getattr(parts[int(index)], kind)[rest] = value
        return parts

    def absorb(self, part: Places, prefix: str) -> None:
        """
        Take over what a part has learned.

        :param part: from :meth:`parts`
        :param prefix: where it is found
        """
        self.given |= {prefix + place: text for place, text in part.given.items()}
        self.changed |= {prefix + place: can_be_restored for place, can_be_restored in part.changed.items()}


def is_file_path(name: str, value: Any) -> bool:
    """
    Tell whether an attribute looks like a place in a file system.

    :param name: of the attribute
    :param value: of it
    :return: whether its name or its value says so
    """
    if isinstance(value, PurePath):
        return True
    return isinstance(value, str) and bool(A_PLACE.match(value) or OF_A_FILE.fullmatch(name))


def points_away(value: Any) -> bool:
    """
    Tell whether a text may name a place outside the current folder, which no checkpoint may choose.

    :param value: anything
    :return: whether it is a text that is absolute, or goes up
    """
    return isinstance(value, str) and AWAY.match(value) is not None
