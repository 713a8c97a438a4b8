"""Variables that callbacks see: deferred ones are computed by every way of reading, and by none of writing."""

import pytest
from stable_baselines3.common.callbacks import BaseCallback, CallbackList

from sb3_trpo.rollouts.collection.callback_locals import LazyVariable, RolloutLocals, StartedCallback, share_locals

READINGS = {
    "item": lambda variables: variables["late"],
    "get": lambda variables: variables.get("late"),
    "pop": lambda variables: variables.pop("late"),
    "setdefault": lambda variables: variables.setdefault("late"),
    "values": lambda variables: list(variables.values())[1],
    "items": lambda variables: dict(variables.items())["late"],
    "copy": lambda variables: variables.copy()["late"],
    "dict": lambda variables: dict(variables)["late"],
    "unpacked": lambda variables: {**variables}["late"],
    "joined": lambda variables: (variables | {})["late"],
    "updating a dict": lambda variables: updated({}, variables)["late"],
}


def updated(variables, others):
    variables.update(others)
    return variables


class Silent(BaseCallback):
    def _on_step(self) -> bool:
        return True


@pytest.mark.parametrize("read", READINGS.values(), ids=READINGS)
def test_every_way_of_reading_computes(read):
    assert read(RolloutLocals({"early": 1, "late": LazyVariable(lambda: 2)})) == 2


def test_no_way_of_writing_computes():
    def fail():
        raise AssertionError

    variables = RolloutLocals({"late": LazyVariable(fail)})
    taken = RolloutLocals({})
    taken.update(variables, early=1)
    assert set(taken) == {"early", "late"}
    assert "late" in taken
    with pytest.raises(AssertionError):
        taken["late"]


def test_a_tree_of_callbacks_shares_one_dict():
    inner = [Silent(), Silent(), Silent()]
    outer = Silent()
    outer.children, outer.named, outer.alone = (inner[0],), {"one": inner[1]}, CallbackList([inner[2]])
    outer.results, outer.parent = [1.0] * 10, outer
    shared = RolloutLocals({})
    share_locals(outer, shared)
    assert all(each.locals is shared for each in (outer, outer.alone, *inner))


def test_a_started_callback_does_all_but_start():
    calls = []
    callback = Silent()
    callback._on_rollout_start = lambda: calls.append("start")
    callback._on_rollout_end = lambda: calls.append("end")
    started = StartedCallback(callback)
    started.on_rollout_start()
    started.update_locals({"seen": 1})
    started.on_rollout_end()
    assert calls == ["end"]
    assert callback.locals["seen"] == 1
