"""
File paths among the attributes of environments, callbacks and the model.

The user's script decides where files are: a run may continue with another log folder. So an attribute that looks like a file
path is left to the script for as long as the run does not change it. One that the run does change is state like any other.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum
from pathlib import PurePath
from typing import Any

NAME_OF_A_PATH = re.compile(r"(.*_)?(path|folder|dir|directory|file|filename)s?", re.IGNORECASE)
ABSOLUTE_PATH = re.compile(r"(~?/|[A-Za-z]:[/\\])\w")
OUTSIDE = re.compile(r"[~/\\]|[A-Za-z]:|(.*[/\\])?\.\.([/\\]|$)", re.DOTALL)


class Handling(Enum):
    """What to do with an attribute."""

    ENCODE = "encode and restore it like any other"
    ENCODE_CHANGED = "encode it, and restore it although it looks like a file path: the run has changed it"
    LEAVE = "leave it to the script"


@dataclass
class FilePaths:
    """
    The file paths that the script has given, and those that the run has changed since.

    Attributes are known by the paths under which an encoder meets them, such as ``"env/venv/0/env/log_dir"``.

    :param given: file paths that were there when ``learn()`` began, as text
    :param changed: for each attribute in which the run has changed a file path, whether a checkpoint can restore it
    :param before_training: whether training has not begun yet, so that whatever is found is given by the script
    """

    given: dict[str, str] = field(default_factory=dict)
    changed: dict[str, bool] = field(default_factory=dict)
    before_training: bool = True

    def classify(self, path: str, name: str, value: Any) -> Handling:
        """
        Decide what to do with an attribute, and remember it.

        :param path: where the encoder meets the attribute
        :param name: name of the attribute
        :param value: value of the attribute
        :return: what to do with it
        """
        is_path = looks_like_path(name, value)
        if self.before_training:
            self.given |= {path: str(value)} if is_path else {}
        elif path in self.changed or (not self._is_given(path, str(value)) if is_path else path in self.given):
            can_be_restored = not isinstance(value, PurePath) and not leaves_folder(value)
            self.changed[path] = can_be_restored
            return Handling.ENCODE_CHANGED if can_be_restored else Handling.LEAVE
        return Handling.LEAVE if is_path else Handling.ENCODE

    def _is_given(self, path: str, text: str) -> bool:
        """
        Compare a file path with what the script has given.

        An object that is created during the run is not known from the start; it may have been passed the file path of
        another, so a file path of the same attribute name counts as well.
        """
        if path in self.given:
            return self.given[path] == text
        name = path.rpartition("/")[2]
        alike = (each for other, each in self.given.items() if other.rpartition("/")[2] == name and other not in self.changed)
        return bool(text) and text in alike

    def begin_training(self, changed: Iterable[str]) -> None:
        """
        Treat every difference from now on as a change by the run.

        :param changed: attributes that had been changed before the checkpoint that the run continues from; they stay state
        """
        self.before_training = False
        self.changed |= dict.fromkeys(changed, True)

    def unrestorable(self) -> list[str]:
        """
        List the attributes that the run has changed and that no checkpoint restores.

        :return: their paths, sorted
        """
        return sorted(path for path, can_be_restored in self.changed.items() if not can_be_restored)

    def split(self, path: str, n_envs: int) -> list[FilePaths]:
        """
        Separate what belongs to each environment of a vectorized one, to be sent to its worker.

        :param path: path of the vectorized environment
        :param n_envs: number of environments
        :return: file paths of each environment, relative to it
        """
        parts = [FilePaths(before_training=self.before_training) for _ in range(n_envs)]
        prefix = f"{path}/"
        for kind in ("given", "changed"):
            for each, value in getattr(self, kind).items():
                index, _, rest = each.removeprefix(prefix).partition("/")
                if each.startswith(prefix) and index.isdecimal() and int(index) < n_envs:
                    getattr(parts[int(index)], kind)[rest] = value
        return parts

    def merge(self, part: FilePaths, prefix: str) -> None:
        """
        Add the file paths of one environment.

        :param part: from :meth:`split`
        :param prefix: what to put before its paths
        """
        self.given |= {prefix + path: text for path, text in part.given.items()}
        self.changed |= {prefix + path: can_be_restored for path, can_be_restored in part.changed.items()}


def looks_like_path(name: str, value: Any) -> bool:
    """
    Check whether an attribute looks like a file path.

    :param name: name of the attribute
    :param value: value of the attribute
    :return: whether its value is an absolute path or a ``pathlib`` object, or a string under a name such as ``log_dir``
    """
    if isinstance(value, PurePath):
        return True
    return isinstance(value, str) and bool(ABSOLUTE_PATH.match(value) or NAME_OF_A_PATH.fullmatch(name))


def leaves_folder(value: Any) -> bool:
    """
    Check whether a string may be a file path outside the current folder.

    A checkpoint must not choose where the script writes to.

    :param value: anything
    :return: whether it is an absolute path, or one that goes up
    """
    return isinstance(value, str) and OUTSIDE.match(value) is not None
