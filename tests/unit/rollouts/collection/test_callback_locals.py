"""Variables that callbacks see: deferred ones are computed by every way of reading, and by none of writing."""

from functools import partial

import pytest
from helpers.envs import RandomEnv
from sb3_contrib.common.maskable.callbacks import MaskableEvalCallback
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CallbackList,
    CheckpointCallback,
    ConvertCallback,
    EvalCallback,
    EveryNTimesteps,
    LogEveryNTimesteps,
    StopTrainingOnMaxEpisodes,
    StopTrainingOnRewardThreshold,
)
from stable_baselines3.common.monitor import Monitor

from sb3_trpo.callbacks import TrainingLifecycle
from sb3_trpo.checkpoint import ResumableCheckpoint
from sb3_trpo.rollouts.collection.callback_locals import (
    LazyVariable,
    RolloutLocals,
    StartedCallback,
    may_change_things,
    share_locals,
)

READINGS = {
    "item": lambda variables: variables["late"],
    "get": lambda variables: variables.get("late"),
    "pop": lambda variables: variables.pop("late"),
    "popitem": lambda variables: variables.popitem()[1],
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


def evaluation(*of_new_best: BaseCallback, kind: type[EvalCallback] = EvalCallback, **callbacks: BaseCallback) -> EvalCallback:
    return kind(Monitor(RandomEnv()), *of_new_best, **callbacks)


def patched() -> BaseCallback:
    callback = CheckpointCallback(1, "unused")
    callback._on_step = lambda: True
    return callback


class OwnCallable:
    def __call__(self, *_: object) -> bool:
        return True


HARMLESS = {
    "nothing": lambda: ConvertCallback(None),
    "evaluation": evaluation,
    "masked evaluation": lambda: evaluation(kind=MaskableEvalCallback),
    "evaluation with another": lambda: evaluation(StopTrainingOnRewardThreshold(1.0), callback_after_eval=evaluation()),
    "saving": lambda: CheckpointCallback(1, "unused"),
    "saving sometimes": lambda: EveryNTimesteps(5, CheckpointCallback(1, "unused")),
    "runs to resume": lambda: ResumableCheckpoint("unused"),
    "log": lambda: LogEveryNTimesteps(5),
    "list": lambda: CallbackList([evaluation(), ResumableCheckpoint("unused"), StopTrainingOnMaxEpisodes(3)]),
    "list in a list": lambda: CallbackList([CallbackList([ConvertCallback(None)])]),
}
FOREIGN = {
    "own": Silent,
    "function": lambda: ConvertCallback(lambda *_: True),
    "built-in method": lambda: ConvertCallback([].append),
    "prepared function": lambda: ConvertCallback(partial(len)),
    "callable object": lambda: ConvertCallback(OwnCallable()),
    "own kind of a function's": lambda: type("Own", (ConvertCallback,), {"_on_step": lambda _: True})(None),
    "own evaluation": lambda: evaluation(kind=type("Own", (EvalCallback,), {})),
    "own lifecycle": type("Own", (TrainingLifecycle,), {"_on_step": lambda _: True}),
    "in a list": lambda: CallbackList([evaluation(), Silent()]),
    "function in a list in a list": lambda: CallbackList([CallbackList([ConvertCallback(lambda *_: True)])]),
    "sometimes": lambda: EveryNTimesteps(5, Silent()),
    "at a new best": lambda: evaluation(Silent()),
    "after an evaluation": lambda: evaluation(callback_after_eval=Silent()),
    "patched": patched,
    "of a package of a similar name": type("Own", (BaseCallback,), {"__module__": "sb3_trpo_x", "_on_step": None}),
}


@pytest.mark.parametrize(
    ("make", "may_change"),
    [pytest.param(make, kinds is FOREIGN, id=name) for kinds in (HARMLESS, FOREIGN) for name, make in kinds.items()],
)
def test_only_callbacks_of_the_users_may_change_things(make, may_change):
    assert may_change_things(make()) is may_change
