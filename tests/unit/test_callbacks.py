"""Callbacks that hold others, and the one that acts around training."""

from contextlib import nullcontext

import pytest
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, CheckpointCallback, EveryNTimesteps

from sb3_trpo.callbacks import TrainingLifecycle, callback_tree, lifecycle_of


class Leaf(BaseCallback):
    def _on_step(self) -> bool:
        return True


class Holder(Leaf):
    """Holds others in a dict and in a tuple, and has a list of results."""

    def __init__(self, *others):
        super().__init__()
        self.by_name = {str(index): other for index, other in enumerate(others[:1])}
        self.others = others[1:]
        self.results = [1.0, 2.0]


def test_every_callback_is_found_once():
    one, two, three = Leaf(), Leaf(), Leaf()
    holder, event = Holder(one, two, one), EveryNTimesteps(10, three)
    root = CallbackList([holder, event, holder])
    assert [*callback_tree(root)] == [root, holder, event, one, two, three]
    assert [*callback_tree([holder, event])] == [holder, event, one, two, three]


def test_what_is_not_a_callback_is_skipped():
    assert [*callback_tree(None)] == [*callback_tree(lambda *_: True)] == []


def test_callbacks_that_another_only_knows_are_not_called_by_it():
    leaf, stranger = Leaf(), Leaf()
    leaf.parent, leaf.locals = stranger, {"callback": stranger}
    assert [*callback_tree(leaf)] == [leaf]


def test_callbacks_that_hold_each_other_are_found():
    one, two = Leaf(), Leaf()
    one.friend, two.friend = two, one
    assert [*callback_tree(one)] == [one, two]


def test_a_lifecycle_knows_all_callbacks_and_calls_none():
    lifecycle = TrainingLifecycle()
    lifecycle.root = Leaf()
    assert [*callback_tree([lifecycle])] == [lifecycle]


def test_the_lifecycle_is_found_wherever_it_is():
    lifecycle = TrainingLifecycle()
    nested = EveryNTimesteps(1, CallbackList([CheckpointCallback(1, "models"), lifecycle]))
    assert lifecycle_of([Leaf(), nested]) is lifecycle
    with pytest.raises(ValueError, match="2 callbacks would save and continue the run, but only one can"):
        lifecycle_of([lifecycle, TrainingLifecycle()])


def test_without_a_lifecycle_there_is_one_that_does_nothing():
    lifecycle = lifecycle_of([Leaf()])
    assert type(lifecycle) is TrainingLifecycle
    assert isinstance(lifecycle.training(None, None), nullcontext)
    assert lifecycle.before_training_start(Leaf()) is lifecycle.after_training_start(Leaf()) is None
    assert lifecycle.after_iteration()
    assert lifecycle._on_step()
