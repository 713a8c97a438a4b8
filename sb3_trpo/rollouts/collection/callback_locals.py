"""What callbacks find in ``self.locals``: the variables of SB3's loop, some of them computed only when they are read."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback, ConvertCallback

from sb3_trpo.callbacks import callback_tree
from sb3_trpo.networks.plain_network import is_patched

OURS = ("stable_baselines3", "sb3_contrib", "sb3_trpo")
"""Packages whose callbacks read variables at most."""


class LazyVariable(partial[Any]):
    """A variable that is computed when a callback reads it."""


class RolloutLocals(dict[str, Any]):
    """A dict of variables in which every way of reading a lazy variable computes it."""

    def __getitem__(self, name: str) -> Any:
        value = super().__getitem__(name)
        return value() if isinstance(value, LazyVariable) else value

    def __iter__(self) -> Iterator[str]:  # without this override, dict() and ** would bypass __getitem__
        return super().__iter__()

    def __or__(self, other: Any) -> Any:
        return dict(self) | other

    def update(self, other: Any = (), /, **names: Any) -> None:
        """Take over variables; lazy ones stay lazy."""
        super().update(dict.items(other) if isinstance(other, RolloutLocals) else other, **names)

    def get(self, name: str, default: Any = None) -> Any:
        """Look up a variable."""
        return self[name] if name in self else default  # noqa: SIM401  # dict.get bypasses __getitem__

    def setdefault(self, name: str, default: Any = None) -> Any:
        """Look up a variable, or set it."""
        super().setdefault(name, default)
        return self[name]

    def pop(self, name: str, *default: Any) -> Any:
        """Look up a variable and remove it."""
        value = super().pop(name, *default)
        return value() if isinstance(value, LazyVariable) else value

    def popitem(self) -> tuple[str, Any]:
        """Look up the last variable and remove it."""
        name = next(reversed(self))
        return name, self.pop(name)

    def copy(self) -> dict[str, Any]:
        """Compute all variables."""
        return dict(self)

    def values(self) -> Any:
        """Compute the values of all variables."""
        return dict(self).values()

    def items(self) -> Any:
        """Compute all variables, with their names."""
        return dict(self).items()


class StartedCallback:
    """
    A callback that has already had its ``on_rollout_start``, which must not be called twice.

    :param callback: the callback
    """

    def __init__(self, callback: BaseCallback) -> None:
        self.update_locals = callback.update_locals
        self.on_step = callback.on_step
        self.on_rollout_end = callback.on_rollout_end

    def on_rollout_start(self) -> None:
        """Do nothing."""


class ReplacedLocals:
    """
    A callback for a loop that runs on stand-ins for the algorithm or its environments. The callback sees the real ones.

    :param callback: the callback
    :param replacements: variables that the callback sees instead of the loop's, by name
    """

    def __init__(self, callback: BaseCallback, /, **replacements: object) -> None:
        self._callback = callback
        self._replacements = {**replacements, "callback": callback}
        self.on_rollout_start = callback.on_rollout_start
        self.on_step = callback.on_step
        self.on_rollout_end = callback.on_rollout_end

    def update_locals(self, known: dict[str, Any]) -> None:
        """Pass the loop's variables on."""
        self._callback.update_locals({**known, **self._replacements})


def share_locals(callback: BaseCallback, shared: RolloutLocals) -> None:
    """
    Give a callback, and every callback that it calls, the same dict of variables, as SB3 does when training starts.

    SB3's ``update_locals`` updates each callback's dict in place. An ordinary dict would compute all lazy variables then.

    :param callback: the root of the tree of callbacks
    :param shared: the dict
    """
    for each in callback_tree(callback):
        each.locals = shared


def may_change_things(callback: BaseCallback) -> bool:
    """
    Check whether a callback may write to its variables, to the policy's weights, or have a way of its own to take variables.

    :param callback: the root of the tree of callbacks
    :return: whether any of them is neither SB3's nor ours, has patched methods, or calls a function of the user's
    """
    return any(_is_foreign(each) for each in callback_tree(callback))


def _is_foreign(callback: BaseCallback) -> bool:
    parts: list[Any] = [type(callback)]
    if isinstance(callback, ConvertCallback) and callback.callback is not None:
        parts.append(callback.callback)
    return is_patched(callback) or any(str(part.__module__).partition(".")[0] not in OURS for part in parts)
