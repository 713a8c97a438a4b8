from contextlib import nullcontext

import pytest
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, CheckpointCallback, EveryNTimesteps

from sb3_trpo.callbacks import RunKeeper, callback_tree, keeper_of


class Leaf(BaseCallback):
    def _on_step(self) -> bool:
        return True


class Holder(Leaf):
    """Keeps others in a dict and in a tuple, and has a list of results."""

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


def test_what_is_no_callback_is_passed_over():
    assert [*callback_tree(None)] == [*callback_tree(lambda *_: True)] == []


def test_what_a_callback_only_knows_is_not_called_by_it():
    leaf, stranger = Leaf(), Leaf()
    leaf.parent, leaf.locals = stranger, {"callback": stranger}
    assert [*callback_tree(leaf)] == [leaf]


def test_callbacks_that_hold_each_other_are_found():
    one, two = Leaf(), Leaf()
    one.friend, two.friend = two, one
    assert [*callback_tree(one)] == [one, two]


def test_a_keeper_knows_all_and_calls_none():
    keeper = RunKeeper()
    keeper.root = Leaf()
    assert [*callback_tree([keeper])] == [keeper]


def test_the_keeper_is_found_wherever_it_is():
    keeper = RunKeeper()
    assert keeper_of([Leaf(), EveryNTimesteps(1, CallbackList([CheckpointCallback(1, "models"), keeper]))]) is keeper
    with pytest.raises(ValueError, match="2 callbacks want to keep the run"):
        keeper_of([keeper, RunKeeper()])


def test_without_a_keeper_there_is_one_that_does_nothing():
    keeper = keeper_of([Leaf()])
    assert type(keeper) is RunKeeper
    assert isinstance(keeper.session(None, None), nullcontext)
    assert keeper.announce(Leaf()) is keeper.resume(Leaf()) is None
    assert keeper.at_boundary()
    assert keeper.on_step.__self__._on_step()
