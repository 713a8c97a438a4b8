"""Callbacks that hold other callbacks, and the one among them that keeps the run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.type_aliases import MaybeCallback


def callback_tree(root: MaybeCallback) -> Iterator[BaseCallback]:
    """
    Go through a callback and all that it calls.

    :param root: what ``learn()`` is given
    :return: each callback once
    """
    pending, reached = [*_members(root)], set()
    while pending:
        current = pending.pop(0)
        if isinstance(current, BaseCallback) and id(current) not in reached:
            reached.add(id(current))
            yield current
            if isinstance(current, RunKeeper):
                continue  # it knows all the others, and calls none
            pending += [part for name, value in vars(current).items() if name not in NOT_CALLED for part in _members(value)]


NOT_CALLED = ("locals", "globals", "parent")
"""Attributes in which a callback finds others that it does not call."""


def _members(value: Any) -> Iterable[Any]:
    """Look into the containers in which callbacks are kept; not into long lists of results."""
    if isinstance(value, Mapping):
        value = [*value.values()]
    if isinstance(value, (list, tuple)):
        return value if value and isinstance(value[0], BaseCallback) else ()
    return (value,)


class RunKeeper(BaseCallback):
    """
    A callback that is also called between two iterations, where no rollout and no update is under way.

    This one does nothing; :class:`sb3_trpo.checkpoint.ResumableCheckpoint` makes runs survive.
    """

    def session(self, model: OnPolicyAlgorithm, root: MaybeCallback) -> AbstractContextManager[None]:
        """
        Accompany a call of ``learn()`` from before its first to after its last action.

        :param model: that learns
        :param root: all its callbacks
        :return: entered before anything has been touched
        """
        return nullcontext()

    def announce(self, root: BaseCallback) -> None:
        """
        Tell the model its number of timesteps, before callbacks are told that training starts.

        :param root: all callbacks
        """

    def resume(self, root: BaseCallback) -> None:
        """
        Bring the run to where it was; all callbacks have been told that training starts.

        :param root: all callbacks
        """

    def at_boundary(self) -> bool:
        """
        Do what there is to do between two iterations.

        :return: whether to go on
        """
        return True

    def _on_step(self) -> bool:
        return True


def keeper_of(root: MaybeCallback) -> RunKeeper:
    """
    Find the callback that keeps the run.

    :param root: what ``learn()`` is given
    :return: the one there is, or one that does nothing
    :raises ValueError: if there are several
    """
    keepers = [callback for callback in callback_tree(root) if isinstance(callback, RunKeeper)]
    if len(keepers) > 1:
        raise ValueError(f"{len(keepers)} callbacks want to keep the run, but only one can. Keep one ResumableCheckpoint.")
    return keepers[0] if keepers else RunKeeper()
