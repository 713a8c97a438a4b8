"""What callbacks and settings become during a run is restored; what the script gives them is not."""

import numpy as np
import pytest
from helpers.resumable_runs import SMALL, TOTAL, trained
from helpers.runs import CrashAt, CrashError, outcome
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.running_mean_std import RunningMeanStd

from sb3_trpo import TRPO
from sb3_trpo.checkpoint import ResumableCheckpoint
from sb3_trpo.checkpoint.callback_state import Baseline, changed_settings, fingerprint_settings
from sb3_trpo.checkpoint.identity import present_settings
from sb3_trpo.checkpoint.run_folder import checkpoints_in
from sb3_trpo.checkpoint.storage import read

# Runs are interrupted by a smaller total, and go on without the callback that broke them off: tests of their own expect these.
pytestmark = pytest.mark.filterwarnings(
    "ignore:The checkpoint .* was made on the way to:UserWarning",
    r"ignore:The checkpoint holds the state of a \S*\.(CrashAt|At), a callback that:UserWarning",
)


def stepped(at):
    return lambda progress: 0.01 if progress > at else 0.005


def test_a_function_that_replaces_another_as_a_setting_is_noticed(tmp_path):
    model = TRPO("MlpPolicy", "CartPole-v1", **SMALL, target_kl=stepped(0.6))
    baseline = Baseline(settings=fingerprint_settings(present_settings(model)))
    assert changed_settings(present_settings(model), baseline) == []
    model.target_kl, model.gamma = stepped(0.6), 0.5
    assert sorted(changed_settings(present_settings(model), baseline)) == ["gamma", "target_kl"]


class Stateful(BaseCallback):
    """A callback of a user's, with settings and with state of every plain kind."""

    def __init__(self, path="here/there", limit=10):
        super().__init__()
        self.path, self.limit = path, limit
        self.count, self.history, self.average = 0, [], np.zeros(2)
        self.by_name = {}
        self.rng = np.random.default_rng()

    def _on_step(self) -> bool:
        self.count += 1
        self.history.append((self.count, float(self.rng.random())))
        self.average = 0.9 * self.average + self.count
        self.by_name[f"step {self.count % 3}"] = self.count
        return True


def test_a_custom_callback_continues_with_its_state_and_with_the_settings_of_the_script(tmp_path):
    first = Stateful()
    trained(tmp_path, total=64, callbacks=[first])
    second = Stateful(path="else/where", limit=99)
    trained(tmp_path, total=64, callbacks=[second])
    assert (second.count, second.history, second.by_name) == (64, first.history, first.by_name)
    assert np.array_equal(second.average, first.average)
    assert second.rng.random() == first.rng.random()
    assert (second.path, second.limit) == ("else/where", 99)


def test_a_callback_that_is_gone_draws_a_warning(tmp_path):
    trained(tmp_path, total=64, callbacks=[Stateful()])
    with pytest.warns(UserWarning, match="state of a .*Stateful, a callback that this run does not have"):
        trained(tmp_path, total=64)


class OwnState(BaseCallback):
    """A callback that takes care of itself."""

    def __init__(self):
        super().__init__()
        self.secret = object()
        self.steps = 0

    def get_state(self):
        return {"steps": self.steps}

    def set_state(self, state):
        self.steps = state["steps"]

    def _on_step(self) -> bool:
        self.steps += 1
        return True


def test_get_state_and_set_state_of_a_callback_are_used(tmp_path):
    trained(tmp_path, total=64, callbacks=[OwnState()])
    second = OwnState()
    trained(tmp_path, total=96, callbacks=[second])
    assert second.steps == 96


class Collector(BaseCallback):
    """A callback that gathers objects of its own, which no checkpoint can hold, beside what one can."""

    def __init__(self):
        super().__init__()
        self.figures, self.by_name, self.count = [], {}, 0

    def _on_step(self) -> bool:
        self.figures.append(self)
        self.by_name[str(self.count)] = object()
        self.count += 1
        return True


def test_objects_that_a_callback_collects_do_not_keep_the_run_from_continuing(tmp_path):
    trained(tmp_path, total=64, callbacks=[Collector()])
    second = Collector()
    trained(tmp_path, total=96, callbacks=[second])
    assert second.count == 96
    assert len(second.figures) == 32


class Choosy(OwnState):
    def set_state(self, state):
        raise ValueError("of another kind")


def test_a_callback_that_cannot_be_restored_draws_a_warning_and_the_run_continues(tmp_path, monkeypatch):
    trained(tmp_path, total=64, callbacks=[OwnState()])
    monkeypatch.setattr(OwnState, "set_state", Choosy.set_state)
    with pytest.warns(UserWarning, match="A callback's state could not be restored.*of another kind"):
        assert trained(tmp_path, total=96, callbacks=[OwnState()]).num_timesteps == 96


class Annealing(BaseCallback):
    """Changes a setting of the model as training goes on."""

    def _on_rollout_end(self) -> None:
        self.model.target_kl *= 0.9
        self.model.gamma = 0.9

    def _on_step(self) -> bool:
        return True


def test_settings_that_a_callback_changes_are_state(tmp_path):
    whole = trained(tmp_path / "whole", callbacks=[Annealing()])
    with pytest.raises(CrashError):
        trained(tmp_path / "pieces", callbacks=[Annealing(), CrashAt(130)])
    pieces = trained(tmp_path / "pieces", callbacks=[Annealing()])
    assert pieces.target_kl == whole.target_kl == pytest.approx(0.01 * 0.9**8)
    assert outcome(pieces, None) == outcome(whole, None)


class WithStatistics(TRPO):
    """An algorithm with state of its own, in an object."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.lengths = RunningMeanStd(shape=(2,))
        self.secret = memoryview(b"")

    def train(self):
        self.lengths.update(np.array([[self._n_updates, 1.0]]))
        super().train()


def test_objects_of_an_algorithm_are_state_and_what_no_checkpoint_holds_is_named(tmp_path):
    def train(folder, *callbacks):
        model = WithStatistics("MlpPolicy", "CartPole-v1", **SMALL)
        with pytest.warns(UserWarning, match="No checkpoint holds these attributes of the model: secret"):
            return model.learn(TOTAL, callback=[*callbacks, ResumableCheckpoint(folder, every=32, verbose=0)])

    whole = train(tmp_path / "whole")
    with pytest.raises(CrashError):
        train(tmp_path / "pieces", CrashAt(130))
    pieces = train(tmp_path / "pieces")
    assert np.array_equal(pieces.lengths.var, whole.lengths.var)
    assert pieces.lengths.count == whole.lengths.count > 8


class FromTheStart(BaseCallback):
    """Remembers where training started, and keeps an object."""

    def _on_training_start(self) -> None:
        self.started_at = self.num_timesteps
        self.rewards = RunningMeanStd()

    def _on_step(self) -> bool:
        self.rewards.update(self.locals["rewards"])
        return True


def test_what_a_callback_sets_when_training_starts_is_state(tmp_path):
    first, second = FromTheStart(), FromTheStart()
    trained(tmp_path, total=64, callbacks=[first])
    trained(tmp_path, total=128, callbacks=[second])
    assert second.started_at == 0
    assert second.rewards.count == pytest.approx(128 + 1e-4)


class Patient(BaseCallback):
    """Has a generator that it has not used yet."""

    def __init__(self):
        super().__init__()
        self.rng = np.random.default_rng()

    def _on_step(self) -> bool:
        return True


def test_an_unseeded_generator_is_restored_even_if_it_has_not_been_used(tmp_path):
    first, second = Patient(), Patient()
    trained(tmp_path, total=64, callbacks=[first])
    trained(tmp_path, total=64, callbacks=[second])
    assert second.rng.random() == first.rng.random()


class Tally:
    """An object that counts."""

    def __init__(self):
        self.n = 0


class LateObject(BaseCallback):
    """Gets an object when the first step is taken, for itself and for the model."""

    def __init__(self):
        super().__init__()
        self.tally, self.count = None, 0

    def _on_step(self) -> bool:
        self.tally = self.model.tally = self.tally or Tally()
        self.count += 1
        return True


def test_an_object_created_during_the_run_draws_a_warning_and_all_else_is_restored(tmp_path):
    trained(tmp_path, total=64, callbacks=[LateObject()])
    second = LateObject()
    with pytest.warns(UserWarning, match="An attribute could not be restored.*tally was a .*Tally"):
        trained(tmp_path, total=128, callbacks=[second])
    assert second.count == 128


class Counts(BaseCallback):
    """Counts in an object that it may share."""

    def __init__(self, tally, by):
        super().__init__()
        self.tally, self.by = tally, by

    def _on_step(self) -> bool:
        self.tally.n += self.by
        return True


def test_an_object_that_callbacks_share_stays_shared(tmp_path):
    for total in (64, 128):
        tally = Tally()
        callbacks = [Counts(tally, 1), Counts(tally, 10)]
        trained(tmp_path, total=total, callbacks=callbacks)
        assert callbacks[0].tally is callbacks[1].tally
        assert callbacks[0].tally.n == 11 * total


class LongChain(BaseCallback):
    """Holds a chain of objects that is too long to follow."""

    def __init__(self):
        super().__init__()
        self.first, self.count = Tally(), 0
        link = self.first
        for _ in range(3000):
            link.next = link = Tally()

    def _on_step(self) -> bool:
        self.count += 1
        return True


def test_a_chain_of_objects_that_is_too_long_does_not_end_the_run(tmp_path):
    trained(tmp_path, total=64, callbacks=[LongChain()])
    second = LongChain()
    assert trained(tmp_path, total=128, callbacks=[second]).num_timesteps == 128
    assert second.count == 128


class Growing(BaseCallback):
    """Calls another callback from the second step on."""

    def __init__(self):
        super().__init__()
        self.other = None

    def _on_step(self) -> bool:
        if self.other is None:
            self.other = Stateful()
            self.other.init_callback(self.model)
        return self.other.on_step()


def test_a_callback_created_during_the_run_draws_a_warning_at_the_restart(tmp_path):
    trained(tmp_path, total=64, callbacks=[Growing()])
    with pytest.warns(UserWarning, match="state of a .*Stateful, a callback that this run does not have"):
        assert trained(tmp_path, total=96, callbacks=[Growing()]).num_timesteps == 96
    assert read(checkpoints_in(tmp_path)[0]).n_timesteps == 96
