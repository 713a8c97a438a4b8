"""What callbacks and settings become during a run is restored; what the script gives them is not."""

import numpy as np
import pytest
from helpers.codecs import OwnState, Thing
from helpers.resumable_runs import INTERRUPTED, SMALL, TOTAL, assert_resumes_exactly, small_model, trained
from helpers.runs import outcome
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.running_mean_std import RunningMeanStd

from sb3_trpo import TRPO
from sb3_trpo.checkpoint import ResumableCheckpoint
from sb3_trpo.checkpoint.callback_state import Baseline, changed_settings, fingerprint_settings
from sb3_trpo.checkpoint.identity import present_settings
from sb3_trpo.checkpoint.run_folder import checkpoints_in
from sb3_trpo.checkpoint.storage import read

pytestmark = INTERRUPTED


def interrupted(folder, make, total=96):
    """Train with a callback, and with another one from there; returns both."""
    callbacks = make(), make()
    trained(folder, total=64, callbacks=callbacks[:1])
    assert trained(folder, total=total, callbacks=callbacks[1:]).num_timesteps == total
    return callbacks


def test_a_function_that_replaces_another_as_a_setting_is_noticed():
    def stepped():
        return lambda progress: 0.01 if progress > 0.6 else 0.005

    model = small_model(target_kl=stepped())
    baseline = Baseline(settings=fingerprint_settings(present_settings(model)))
    assert changed_settings(present_settings(model), baseline) == []
    model.target_kl, model.gamma = stepped(), 0.5
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


class Counting(BaseCallback):
    """Counts its steps."""

    count = 0

    def _on_step(self) -> bool:
        self.count += 1
        return True


class OwnStateCallback(OwnState, Counting):
    """Has get_state() and set_state(state), and a part that they do not mention."""

    def __init__(self):
        Counting.__init__(self)
        self.hidden, self.secret = object(), 0

    def _on_step(self) -> bool:
        self.secret += 1
        return True


def test_get_state_and_set_state_of_a_callback_are_used(tmp_path):
    _, second = interrupted(tmp_path, OwnStateCallback)
    assert second.secret == 96


def test_a_callback_that_cannot_be_restored_draws_a_warning_and_the_run_continues(tmp_path, monkeypatch):
    def refuse(self, state):
        raise ValueError("of another kind")

    monkeypatch.setattr(OwnStateCallback, "set_state", refuse)
    with pytest.warns(UserWarning, match="A callback's state could not be restored.*of another kind"):
        interrupted(tmp_path, OwnStateCallback)


class Collector(Counting):
    """Gathers objects, which no checkpoint can hold, beside what one can."""

    def __init__(self):
        super().__init__()
        self.figures, self.by_name = [], {}

    def _on_step(self) -> bool:
        self.figures.append(self)
        self.by_name[str(self.count)] = object()
        return super()._on_step()


def test_objects_that_a_callback_collects_do_not_keep_the_run_from_continuing(tmp_path):
    _, second = interrupted(tmp_path, Collector)
    assert second.count == 96
    assert len(second.figures) == 32


class Annealing(BaseCallback):
    """Changes a setting of the model as training goes on."""

    def _on_rollout_end(self) -> None:
        self.model.target_kl *= 0.9
        self.model.gamma = 0.9

    def _on_step(self) -> bool:
        return True


def test_settings_that_a_callback_changes_are_state(tmp_path):
    def script(folder, crash):
        model = trained(folder, callbacks=[Annealing(), crash])
        return outcome(model, None), model.target_kl

    assert assert_resumes_exactly(script, tmp_path, 130)[1] == pytest.approx(0.01 * 0.9**8)


class WithStatistics(TRPO):
    """An algorithm that keeps statistics in an object."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.lengths = RunningMeanStd(shape=(2,))
        self.secret = memoryview(b"")

    def train(self):
        self.lengths.update(np.array([[self._n_updates, 1.0]]))
        super().train()


def test_objects_of_an_algorithm_are_state_and_what_no_checkpoint_holds_is_named(tmp_path):
    def script(folder, crash):
        model = WithStatistics("MlpPolicy", "CartPole-v1", **SMALL)
        with pytest.warns(UserWarning, match="No checkpoint holds these attributes of the model: secret"):
            model.learn(TOTAL, callback=[crash, ResumableCheckpoint(folder, every=32, verbose=0)])
        return model.lengths.var.tolist(), model.lengths.count

    assert assert_resumes_exactly(script, tmp_path, 130)[1] > 8


class FromTheStart(BaseCallback):
    """Remembers where training started, and keeps an object."""

    def _on_training_start(self) -> None:
        self.started_at = self.num_timesteps
        self.rewards = RunningMeanStd()

    def _on_step(self) -> bool:
        self.rewards.update(self.locals["rewards"])
        return True


def test_what_a_callback_sets_when_training_starts_is_state(tmp_path):
    _, second = interrupted(tmp_path, FromTheStart, total=128)
    assert second.started_at == 0
    assert second.rewards.count == pytest.approx(128 + 1e-4)


class Patient(Counting):
    """Has a generator that it has not used yet."""

    def __init__(self):
        super().__init__()
        self.rng = np.random.default_rng()


def test_an_unseeded_generator_is_restored_even_if_it_has_not_been_used(tmp_path):
    first, second = interrupted(tmp_path, Patient)
    assert second.rng.random() == first.rng.random()


class LateObject(Counting):
    """Gets an object when the first step is taken, for itself and for the model."""

    tally = None

    def _on_step(self) -> bool:
        self.tally = self.model.tally = self.tally or Thing(n=0)
        return super()._on_step()


def test_an_object_created_during_the_run_draws_a_warning_and_all_else_is_restored(tmp_path):
    with pytest.warns(UserWarning, match="An attribute could not be restored.*tally was a .*Thing"):
        _, second = interrupted(tmp_path, LateObject)
    assert second.count == 96


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
        tally = Thing(n=0)
        callbacks = [Counts(tally, 1), Counts(tally, 10)]
        trained(tmp_path, total=total, callbacks=callbacks)
        assert callbacks[0].tally is callbacks[1].tally
        assert callbacks[0].tally.n == 11 * total


class LongChain(Counting):
    """Holds a chain of objects that is too long to follow."""

    def __init__(self):
        super().__init__()
        self.first = link = Thing()
        for _ in range(3000):
            link.next = link = Thing()


def test_a_chain_of_objects_that_is_too_long_does_not_end_the_run(tmp_path):
    _, second = interrupted(tmp_path, LongChain)
    assert second.count == 96


class Growing(BaseCallback):
    """Calls another callback from the second step on."""

    other = None

    def _on_step(self) -> bool:
        if self.other is None:
            self.other = Stateful()
            self.other.init_callback(self.model)
        return self.other.on_step()


def test_a_callback_created_during_the_run_draws_a_warning_at_the_restart(tmp_path):
    with pytest.warns(UserWarning, match="state of a .*Stateful, a callback that this run does not have"):
        interrupted(tmp_path, Growing)
    assert read(checkpoints_in(tmp_path)[0]).n_timesteps == 96
