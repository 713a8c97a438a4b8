"""The variables that callbacks see as ``self.locals``, some of them computed only when a callback looks at them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback

from sb3_trpo.callbacks import callback_tree


class Deferred(partial[Any]):
    """A variable that is computed when a callback asks for it."""


class SharedLocals(dict[str, Any]):
    """What callbacks see as ``self.locals``: every way of reading a deferred variable computes it."""

    def __getitem__(self, name: str) -> Any:
        value = super().__getitem__(name)
        return value() if isinstance(value, Deferred) else value

    def __iter__(self) -> Iterator[str]:  # its presence keeps dict() and ** from reading behind __getitem__
        return super().__iter__()

    def __or__(self, other: Any) -> Any:
        return dict(self) | other

    def update(self, other: Any = (), /, **names: Any) -> None:
        """Take over variables, deferred ones as they are."""
        super().update(dict.items(other) if isinstance(other, SharedLocals) else other, **names)

    def get(self, name: str, default: Any = None) -> Any:
        """Look up a variable."""
        return self[name] if name in self else default  # noqa: SIM401  # dict.get would not ask

    def setdefault(self, name: str, default: Any = None) -> Any:
        """Look up a variable, or set it."""
        super().setdefault(name, default)
        return self[name]

    def pop(self, name: str, *default: Any) -> Any:
        """Look up a variable and remove it."""
        value = super().pop(name, *default)
        return value() if isinstance(value, Deferred) else value

    def copy(self) -> dict[str, Any]:
        """Give all variables."""
        return dict(self)

    def values(self) -> Any:
        """Give all variables' values."""
        return dict(self).values()

    def items(self) -> Any:
        """Give all variables with their names."""
        return dict(self).items()


class StartedCallback:
    """
    A callback whose ``on_rollout_start`` has been called.

    :param callback: the callback
    """

    def __init__(self, callback: BaseCallback) -> None:
        self.update_locals = callback.update_locals
        self.on_step = callback.on_step
        self.on_rollout_end = callback.on_rollout_end

    def on_rollout_start(self) -> None:
        """Do nothing more."""


class OwnLocals:
    """
    A callback for a loop that is given something in the place of an algorithm or its environments.

    :param callback: the callback
    :param own: what it finds among its variables instead, by name
    """

    def __init__(self, callback: BaseCallback, /, **own: object) -> None:
        self._callback = callback
        self._own = {**own, "callback": callback}
        self.on_rollout_start = callback.on_rollout_start
        self.on_step = callback.on_step
        self.on_rollout_end = callback.on_rollout_end

    def update_locals(self, known: dict[str, Any]) -> None:
        """Pass the loop's variables on."""
        self._callback.update_locals({**known, **self._own})


def share_locals(callback: BaseCallback, shared: SharedLocals) -> None:
    """
    Give a callback and all that it calls one dict of variables, as SB3 does when training starts.

    :param callback: the root
    :param shared: the dict
    """
    for each in callback_tree(callback):
        each.locals = shared
