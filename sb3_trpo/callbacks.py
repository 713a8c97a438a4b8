"""Callbacks that hold other callbacks, and callbacks that act around training and between two iterations."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.type_aliases import MaybeCallback

NOT_CALLED = ("locals", "globals", "parent")
"""Attributes that may contain callbacks which the owner does not call."""


def callback_tree(root: MaybeCallback) -> Iterator[BaseCallback]:
    """
    Iterate over a callback and all others that it calls, breadth first.

    :param root: what ``learn()`` is given
    :return: each callback once
    """
    pending, reached = [*_members(root)], set()
    while pending:
        current = pending.pop(0)
        if isinstance(current, BaseCallback) and id(current) not in reached:
            reached.add(id(current))
            yield current
            if isinstance(current, TrainingLifecycle):
                continue  # it knows all callbacks, but calls none
            pending += [part for name, value in vars(current).items() if name not in NOT_CALLED for part in _members(value)]


def _members(value: Any) -> Iterable[Any]:
    """Look into containers that may hold callbacks, but not into long lists of results."""
    if isinstance(value, Mapping):
        value = [*value.values()]
    if isinstance(value, (list, tuple)):
        return value if value and isinstance(value[0], BaseCallback) else ()
    return (value,)


class TrainingLifecycle(BaseCallback):
    """
    A callback that also acts around training, and between two iterations, when neither a rollout nor an update is going on.

    This one does nothing; :class:`sb3_trpo.checkpoint.ResumableCheckpoint` saves runs and continues them.
    """

    def training(self, model: OnPolicyAlgorithm, root: MaybeCallback) -> AbstractContextManager[None]:
        """
        Return a context manager for a whole call of ``learn()``, which enters it before it does anything else.

        :param model: the model
        :param root: what ``learn()`` is given: all callbacks
        :return: the context manager
        """
        return nullcontext()

    def before_training_start(self, root: BaseCallback) -> None:
        """
        Act after the environments have been reset, before any callback's ``on_training_start()``.

        :param root: the callback that calls all others
        """

    def after_training_start(self, root: BaseCallback) -> None:
        """
        Act after every callback's ``on_training_start()``, before the first rollout.

        :param root: the callback that calls all others
        """

    def after_iteration(self) -> bool:
        """
        Act after a rollout and the update that learned from it.

        :return: whether to continue training
        """
        return True

    def _on_step(self) -> bool:
        return True


def lifecycle_of(root: MaybeCallback) -> TrainingLifecycle:
    """
    Find the callback that acts around training.

    :param root: what ``learn()`` is given
    :return: the only one, or one that does nothing
    :raises ValueError: if there are several
    """
    found = [callback for callback in callback_tree(root) if isinstance(callback, TrainingLifecycle)]
    if len(found) > 1:
        raise ValueError(
            f"{len(found)} callbacks would save and continue the run, but only one can. Keep one ResumableCheckpoint."
        )
    return found[0] if found else TrainingLifecycle()
