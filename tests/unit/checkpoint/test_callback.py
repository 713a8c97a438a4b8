"""ResumableCheckpoint from outside: its settings, its folder, what it refuses and what it survives in one process."""

import builtins
import json
import math
import os
import shutil
import signal
import threading
import time
import warnings
from functools import partial
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from helpers.contract_tools import parameters, same_parameters
from helpers.envs import BOX_ACTION, RandomEnv
from helpers.resumable_runs import INTERRUPTED, SMALL, TOTAL, At, assert_resumes_exactly, small_model, trained
from helpers.runs import CrashAt, CrashError, outcome
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, EventCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import SubprocVecEnv, VecNormalize

from sb3_trpo import TRPO, MlpPolicy
from sb3_trpo.checkpoint import ResumableCheckpoint, callback as callback_module
from sb3_trpo.checkpoint.codecs.inspection import qualified_name
from sb3_trpo.checkpoint.limits import ARRAYS, LARGEST
from sb3_trpo.checkpoint.run_folder import checkpoints_in
from sb3_trpo.checkpoint.storage import NewerFormatError, read, write

pytestmark = INTERRUPTED
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


def raise_error(error):
    raise error


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


def timesteps_in(folder):
    """List the timesteps of the checkpoints in a folder, newest first; all of them must be intact."""
    return [read(path).n_timesteps for path in checkpoints_in(folder)]


@pytest.fixture
def full_disk(monkeypatch):
    monkeypatch.setattr(callback_module, "write", lambda *_: raise_error(OSError(28, "No space left on device")))


@pytest.fixture
def attempts(monkeypatch):
    """Give the timesteps at which checkpoints are written, or are tried to be."""
    tried, real = [], callback_module.write
    monkeypatch.setattr(callback_module, "write", lambda *args: (tried.append(args[1]), real(*args)))
    return tried


@pytest.mark.parametrize(("name", "value"), [("every", 0), ("every", 2.5), ("every", "often"), ("keep", 0), ("keep", None)])
def test_a_setting_that_is_not_allowed_is_named(name, value, tmp_path):
    with pytest.raises(ValueError, match=f"{name} is .*must be an integer >= 1"):
        ResumableCheckpoint(tmp_path, **{name: value})
    with pytest.raises(TypeError, match="positional"):
        ResumableCheckpoint(tmp_path, value)


def test_checkpoints_are_made_after_an_iteration_and_the_newest_stay(tmp_path):
    resumable = ResumableCheckpoint(tmp_path, every=50, keep=3, verbose=0)
    trained(tmp_path, resumable=resumable, total=300)
    assert timesteps_in(tmp_path) == [320, 256, 192]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "checkpoint-000000000192", "checkpoint-000000000256", "checkpoint-000000000320", "lock"]  # fmt: skip


def test_the_folder_may_name_env_and_seed(tmp_path):
    trained(str(tmp_path / "{env}" / "seed {seed}"), total=32)
    assert (tmp_path / "CartPole-v1" / "seed 0" / "checkpoint-000000000032").is_dir()


def test_it_prints_where_it_continues(tmp_path, capsys):
    trained(tmp_path, resumable=ResumableCheckpoint(tmp_path, every=32))
    assert "Continuing" not in capsys.readouterr().out
    with pytest.warns(UserWarning, match="on the way to 256 timesteps, and this run goes to 512"):
        trained(tmp_path, total=2 * TOTAL, resumable=ResumableCheckpoint(tmp_path, every=32, verbose=2))
    printed = capsys.readouterr().out
    assert f"Continuing from {tmp_path / 'checkpoint-000000000256'}, 256 of 512 timesteps" in printed
    assert f"Saved {tmp_path / 'checkpoint-000000000512'}" in printed


def test_it_is_found_inside_lists_and_events(tmp_path):
    nested = CallbackList([EventCallback(ResumableCheckpoint(tmp_path, every=32, verbose=0))])
    small_model().learn(64, callback=nested)
    assert timesteps_in(tmp_path) == [64, 32]


def test_two_of_them_are_refused(tmp_path):
    with pytest.raises(ValueError, match="only one"):
        small_model().learn(64, callback=[ResumableCheckpoint(tmp_path / name) for name in "ab"])


class OtherPolicy(MlpPolicy):
    pass


class OtherAlgorithm(TRPO):
    pass


class OtherWrapper(gym.ActionWrapper):
    def action(self, action):
        return action


OTHER_RUNS = {
    "env": (lambda: small_model("Acrobot-v1"), "envs.*CartPole-v1.*Acrobot-v1"),
    "env argument": (lambda: small_model(gym.make("CartPole-v1", sutton_barto_reward=True)), "envs.*sutton_barto_reward"),
    "time limit": (lambda: small_model(gym.make("CartPole-v1", max_episode_steps=9)), "max_episode_steps=9"),
    "wrapper": (lambda: small_model(OtherWrapper(gym.make("CartPole-v1"))), "OtherWrapper"),
    "number of envs": (lambda: small_model(make_vec_env("CartPole-v1", 2)), "n_envs: 1 in the checkpoint, 2"),
    "normalization": (lambda: small_model(VecNormalize(make_vec_env("CartPole-v1"))), "VecNormalize"),
    "observation space": (lambda: small_model(RandomEnv()), "observation_space"),
    "action space": (lambda: small_model(RandomEnv(action_space=BOX_ACTION)), "action_space"),
    "policy": (lambda: small_model(policy=OtherPolicy), "policy: .*MlpPolicy.*OtherPolicy"),
    "network": (lambda: small_model(policy_kwargs={"net_arch": [8]}), r"net.0.weight.*\[8, 4\]"),
    "activation": (lambda: small_model(policy_kwargs={"activation_fn": th.nn.ReLU}), "policy_kwargs.*ReLU"),
    "algorithm": (lambda: OtherAlgorithm("MlpPolicy", "CartPole-v1", **SMALL), "algorithm: .*TRPO.*OtherAlgorithm"),
    "setting": (lambda: small_model(gamma=0.9), "gamma: 0.99 in the checkpoint, 0.9 here"),
    "schedule": (lambda: small_model(target_kl=lambda p: 0.01 * p), "target_kl"),
    "seed": (lambda: small_model(seed=1), "seed: 0 in the checkpoint, 1 here"),
}


@pytest.mark.parametrize("aspect", OTHER_RUNS)
def test_a_checkpoint_of_another_run_is_refused_with_what_differs_before_anything_is_touched(aspect, tmp_path):
    trained(tmp_path, total=32)
    make, difference = OTHER_RUNS[aspect]
    model = make()
    old = parameters(model.policy)
    with pytest.raises(ValueError, match=difference) as raised:
        model.learn(TOTAL, callback=ResumableCheckpoint(tmp_path))
    assert "is of another run" in str(raised.value)
    assert len(str(raised.value).splitlines()) == 3 or aspect != "seed", "only what differs is listed"
    assert all(th.equal(each, old[name]) for name, each in model.policy.named_parameters())
    assert model._last_obs is None
    assert model.num_timesteps == 0
    trained(tmp_path, total=64)  # the folder is free again, and the right run goes on


def stepped(at):
    return lambda progress: 0.01 if progress > at else 0.005


def test_a_schedule_that_differs_between_quarters_is_listed_once(tmp_path):
    trained(tmp_path, total=64, target_kl=stepped(0.6), learning_rate=lambda p: 1e-3)
    with pytest.raises(ValueError, match=r"target_kl: .* in between") as raised:
        trained(tmp_path, total=64, target_kl=stepped(0.65), learning_rate=lambda p: 2e-3)
    assert len(str(raised.value).splitlines()) == 4, "a head, one line for each schedule, and what to do"
    assert trained(tmp_path, total=64, target_kl=stepped(0.6), learning_rate=lambda p: 1e-3).num_timesteps == 64


def test_a_checkpoint_of_the_first_version_is_still_accepted(tmp_path):
    """It has five values of each schedule, and says nothing of paths that were changed."""
    settings = {"target_kl": stepped(0.6), "learning_rate": lambda p: 1e-3 * p}
    whole = trained(tmp_path / "whole", **settings)
    trained(tmp_path / "old", **settings, callbacks=[At(160, terminate)])
    newest, before = checkpoints_in(tmp_path / "old")
    checkpoint = read(newest)
    for path in (newest, before):
        shutil.rmtree(path)
    del checkpoint.state["schedules"], checkpoint.state["run"]["changed_places"]
    assert checkpoint.state["identity"]["target_kl"] == [0.01, 0.01, 0.005, 0.005, 0.005]
    write(tmp_path / "old", checkpoint.n_timesteps, checkpoint.versions, checkpoint.state, checkpoint.arrays)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        finished = trained(tmp_path / "old", **settings, callbacks=[At(TOTAL + 1, pytest.fail)])
    assert outcome(finished, None) == outcome(whole, None)


class Decaying:
    """A schedule that falls with each call."""

    calls = 0

    def __call__(self, progress):
        self.calls += 1
        return 0.02 * 0.97**self.calls


def test_a_schedule_that_counts_its_calls_continues_and_checkpoints_do_not_count(tmp_path):
    def script(folder, crash):
        model = small_model(target_kl=Decaying(), learning_rate=Decaying())
        model.learn(TOTAL, callback=folder and [ResumableCheckpoint(folder, every=32, verbose=0), crash])
        return outcome(model, None), model.target_kl.calls, model.learning_rate.calls

    assert script(None, None) == assert_resumes_exactly(script, tmp_path, 70, 140, 150)


def test_another_library_version_draws_a_warning(tmp_path, monkeypatch):
    trained(tmp_path, total=32)
    there = callback_module.versions()
    monkeypatch.setattr(callback_module, "versions", lambda: there | {"torch": "9.9"})
    with pytest.warns(UserWarning, match=r"perhaps not bit for bit:\n  torch: .* in the checkpoint, '9.9' here"):
        trained(tmp_path)


def test_a_broken_newest_checkpoint_is_skipped_and_the_run_ends_the_same(tmp_path):
    whole = trained(tmp_path / "whole", total=2 * TOTAL)
    trained(tmp_path / "pieces", total=TOTAL)
    newest, before = checkpoints_in(tmp_path / "pieces")
    os.truncate(newest / "arrays.safetensors", 100)
    with pytest.warns(UserWarning, match=rf"{newest} is broken.*the one before is used"):
        pieces = trained(tmp_path / "pieces", total=2 * TOTAL)
    assert outcome(pieces, None) == outcome(whole, None)
    assert before.name == "checkpoint-000000000224"


def test_a_checkpoint_of_a_newer_format_says_so(tmp_path, monkeypatch):
    with monkeypatch.context() as later:
        later.setattr("sb3_trpo.checkpoint.storage.FORMAT", 7)
        trained(tmp_path, total=32)
    with pytest.raises(NewerFormatError, match=r"format 7.*Install the version that wrote it"):
        trained(tmp_path)


def test_a_folder_that_cannot_be_written_to_is_an_error_before_training(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", Path("/proc/nowhere/run"), Path("/sys/run")):
        with pytest.raises(OSError, match=f"cannot be written to {folder}.*Give a folder"):
            trained(folder, callbacks=[At(1, lambda: pytest.fail("has been training"))])


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="needs to become someone else")
def test_a_read_only_folder_is_an_error_before_training(tmp_path):
    tmp_path.chmod(0o755)
    for parent in tmp_path.parents:
        if parent.owner() == "root" and parent != Path("/tmp"):
            parent.chmod(parent.stat().st_mode | 0o055)
    model = small_model()
    os.seteuid(65534)
    try:
        with pytest.raises(OSError, match="cannot be written to"):
            model.learn(TOTAL, callback=ResumableCheckpoint(tmp_path))
    finally:
        os.seteuid(0)
    assert model._last_obs is None


class FailingDisk:
    """Let the k-th writing system call of a checkpoint fail, as a full disk does."""

    def __init__(self, monkeypatch, k):
        self.calls, self.k, self.failed = 0, k, 0
        for owner, name in ((builtins, "open"), (os, "fsync"), (Path, "mkdir"), (Path, "rename")):
            monkeypatch.setattr(owner, name, self.failing(getattr(owner, name)))

    def failing(self, function):
        def call(*args, **kwargs):
            if any("writing-checkpoint" in str(each) for each in args) or function is fsync:
                self.calls += 1
                if self.calls == self.k:
                    self.failed += 1
                    raise OSError(28, "No space left on device")
            return function(*args, **kwargs)

        return call


fsync = os.fsync


@pytest.mark.parametrize("k", range(1, 14))
def test_a_write_that_fails_does_not_end_the_run_and_leaves_the_last_checkpoint(k, tmp_path, monkeypatch):
    trained(tmp_path, total=64)
    seen, model = [], small_model()
    callbacks = [At(97, lambda: seen.extend(timesteps_in(tmp_path))), ResumableCheckpoint(tmp_path, every=32, verbose=0)]
    with monkeypatch.context() as patched, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        disk = FailingDisk(patched, k)
        model.learn(128, callback=callbacks)
    messages = [each for each in caught if "No checkpoint could be written" in str(each.message)]
    assert disk.failed == len(messages) == 1
    # The tenth is to sync the folder, after the checkpoint has its name; the last three belong to the second checkpoint.
    in_the_end = {k <= 10: [128, 64], k == 10: [128, 96], k > 10: [96, 64]}[True]
    assert seen == ([64, 32] if k < 10 else [96, 64, 32] if k == 10 else [96, 64])
    assert timesteps_in(tmp_path) == in_the_end
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("writing")]
    assert outcome(model, None) == outcome(trained(tmp_path / "other", total=128), None)


@pytest.mark.usefixtures("full_disk")
def test_a_disk_that_stays_full_draws_one_warning_and_a_stop_does_not_promise_a_checkpoint(tmp_path, capsys):
    with pytest.warns(UserWarning, match="No space left") as caught:
        model = trained(tmp_path, resumable=ResumableCheckpoint(tmp_path, every=32), callbacks=[At(220, terminate)])
    assert sum("No checkpoint" in str(each.message) for each in caught) == 1
    assert model.num_timesteps == 224
    assert "there is no checkpoint to continue from" in capsys.readouterr().out


@pytest.mark.parametrize("fault", ["rename", "rmtree"])
def test_an_older_checkpoint_that_cannot_be_removed_draws_one_warning_and_saving_continues(
    fault, tmp_path, monkeypatch, attempts
):
    """Eleven folders once came of this, for a checkpoint was made after each iteration."""
    rename, rmtree = Path.rename, shutil.rmtree

    def fail(path):
        if "checkpoint-000000000064" in path.name and "writing" not in path.name:
            raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patched, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if fault == "rename":
            patched.setattr(Path, "rename", lambda path, target: fail(path) or rename(path, target))
        else:
            patched.setattr(shutil, "rmtree", lambda path, ignore_errors=False: ignore_errors or fail(path) or rmtree(path))
        model = trained(tmp_path, total=352, resumable=ResumableCheckpoint(tmp_path, every=64, keep=2, verbose=0))
    assert attempts == [64, 128, 192, 256, 320, 352]
    (message,) = [str(each.message) for each in caught]
    assert "The checkpoint at 192 timesteps is written, but an older one could not be removed" in message
    assert "000000000064 (PermissionError: [Errno 13] Permission denied)" in message
    assert "by hand" in message
    assert timesteps_in(tmp_path) == ([352, 320, 64] if fault == "rename" else [352, 320])
    assert model.num_timesteps == 352
    trained(tmp_path, total=416, resumable=ResumableCheckpoint(tmp_path, every=64, keep=2, verbose=0))
    assert sorted(path.name[-12:] for path in tmp_path.iterdir()) == ["000000000352", "000000000416", "lock"]


def test_any_other_error_of_removing_draws_a_warning_and_the_checkpoint_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(callback_module, "keep_newest", lambda *_: raise_error(RuntimeError("surprise")))
    with pytest.warns(UserWarning, match=r"is written, but .*RuntimeError: surprise") as caught:
        trained(tmp_path, total=160, resumable=ResumableCheckpoint(tmp_path, every=64, verbose=0))
    assert len(caught) == 1
    assert timesteps_in(tmp_path) == [160, 128, 64]


class Hoarding(BaseCallback):
    """Keeps all that it has seen."""

    def __init__(self):
        super().__init__()
        self.buffer = np.zeros((0, 1000))

    def _on_step(self) -> bool:
        self.buffer = np.concatenate([self.buffer, np.ones((1, 1000))])
        return True


def test_a_checkpoint_too_large_to_be_read_draws_one_warning_and_the_last_one_stays(tmp_path, monkeypatch, attempts):
    monkeypatch.setitem(LARGEST, ARRAYS, 10**6)  # reached at 125 timesteps
    with pytest.warns(UserWarning, match="No checkpoint could be written at 128") as caught:
        trained(tmp_path, 352, callbacks=[Hoarding()], resumable=ResumableCheckpoint(tmp_path, every=64, verbose=0))
    (message,) = [str(each.message) for each in caught]
    assert f"at most 1,000,000 are read at a restart. Most are in callbacks/{qualified_name(Hoarding)}#0/buffer." in message
    assert "tried again after 64 more" in message
    assert attempts == [64, 128, 192, 256, 320, 352]
    assert timesteps_in(tmp_path) == [64]


def test_a_finished_run_prints_that_it_is(tmp_path, capsys):
    trained(tmp_path, total=50)
    model = trained(tmp_path, total=50, resumable=ResumableCheckpoint(tmp_path))
    printed = [line for line in capsys.readouterr().out.splitlines() if "timesteps" in line]
    assert printed == [f"Already finished: 64 of 50 timesteps, checkpoint {tmp_path / 'checkpoint-000000000064'}"]
    assert model.num_timesteps == 64


class Endless(TRPO):
    """Learns until something ends it, or up to its own total."""

    def _setup_learn(self, total_timesteps, *args, **kwargs):
        return super()._setup_learn(self.total, *args, **kwargs)


def endless(folder, stop=math.inf, total=math.inf, verbose=0):
    """Train until a number of timesteps is reached, or a signal comes at one."""
    model = Endless("MlpPolicy", "CartPole-v1", **SMALL, target_kl=lambda p: 0.01 * p)
    model.total = total
    return model.learn(1, callback=[At(stop, terminate), ResumableCheckpoint(folder, every=32, verbose=verbose)])


def test_a_run_without_end_continues_without_end(tmp_path, capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        endless(tmp_path / "pieces", 70, verbose=1)
        newest = checkpoints_in(tmp_path / "pieces")[0]
        text = (newest / "state.json").read_text()
        strict = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
        assert strict["total_timesteps"] is None
        assert "Stopped by SIGTERM at 96 timesteps" in capsys.readouterr().out
        pieces = endless(tmp_path / "pieces", 200, verbose=1)
        assert f"Continuing from {newest}, 96 timesteps of a run without end\n" in capsys.readouterr().out
        assert outcome(pieces, None) == outcome(endless(tmp_path / "whole", 200), None)
    assert pieces._current_progress_remaining == 1.0


def test_a_total_that_becomes_finite_or_infinite_draws_a_warning(tmp_path):
    endless(tmp_path, 70)
    with pytest.warns(UserWarning, match="on the way to infinity, and this run goes to 128 timesteps: schedules follow"):
        endless(tmp_path, total=128)
    with pytest.warns(UserWarning, match="on the way to 128 timesteps, and this run goes to infinity: schedules follow"):
        assert endless(tmp_path, 170).num_timesteps == 192


class Breaking(RandomEnv):
    """An env that breaks at its 150th step."""

    total = 0

    def __init__(self, fault):
        super().__init__()
        self.fault = fault

    def step(self, action):
        observation, *rest = super().step(action)
        self.total += 1
        return self.fault() if self.total == 150 else observation, *rest


FAULTS = {
    "raises": (lambda: raise_error(RuntimeError("the simulator is gone")), RuntimeError, "the simulator is gone"),
    "NaN": (lambda: np.full(3, np.nan, np.float32), ValueError, "observation"),
    "None": (lambda: None, (TypeError, ValueError), "NoneType|observation"),
    "wrong shape": (lambda: np.zeros(5, np.float32), ValueError, "shape"),
}


@pytest.mark.parametrize("vec_env_cls", [None, SubprocVecEnv], ids=["here", "in workers"])
@pytest.mark.parametrize("fault", FAULTS)
def test_an_env_that_breaks_leaves_the_model_intact_and_the_last_checkpoint_good(fault, vec_env_cls, tmp_path):
    make, error, text = FAULTS[fault]
    worker_dies = vec_env_cls and fault == "raises"
    model = small_model(make_vec_env(partial(Breaking, make), 1, seed=3, vec_env_cls=vec_env_cls))
    handlers = [signal.getsignal(each) for each in SIGNALS]
    with pytest.raises(EOFError if worker_dies else error, match=None if worker_dies else text):
        model.learn(TOTAL, callback=ResumableCheckpoint(tmp_path, every=32, verbose=0))
    assert handlers == [signal.getsignal(each) for each in SIGNALS]
    assert timesteps_in(tmp_path)[0] == 128
    sound = TRPO.from_checkpoint(tmp_path, make_vec_env(RandomEnv))
    assert same_parameters(model.policy, sound.policy)
    if not worker_dies:
        model.env.close()


def test_an_interrupted_learn_frees_its_folder(tmp_path):
    with pytest.raises(CrashError):
        trained(tmp_path, callbacks=[CrashAt(100)])
    assert trained(tmp_path).num_timesteps == TOTAL


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_ends_the_run_at_the_next_boundary_with_a_checkpoint(number, tmp_path, capsys):
    before = signal.getsignal(number)
    resumable = ResumableCheckpoint(tmp_path, every=10**6)
    model = trained(tmp_path, resumable=resumable, callbacks=[At(70, lambda: os.kill(os.getpid(), number))])
    assert resumable.stopped_by == number.name
    assert model.num_timesteps == 96
    assert signal.getsignal(number) is before
    assert f"Stopped by {number.name} at 96 timesteps" in capsys.readouterr().out
    resumed = trained(tmp_path, resumable=resumable)
    assert resumable.stopped_by is None
    assert outcome(resumed, None) == outcome(trained(tmp_path / "whole"), None)


def test_signals_are_left_alone_on_request(tmp_path):
    resumable = ResumableCheckpoint(tmp_path, on_signal=False, verbose=0)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path, resumable=resumable, callbacks=[At(70, lambda: os.kill(os.getpid(), signal.SIGINT))])


def test_in_another_thread_it_works_without_signals(tmp_path):
    results = []

    def work():
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            results.append((trained(tmp_path), [str(each.message) for each in caught]))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    ((model, messages),) = results
    assert model.num_timesteps == TOTAL
    assert any("main thread only" in text for text in messages)


def test_learning_twice_with_one_folder_continues(tmp_path):
    model, resumable = small_model(), ResumableCheckpoint(tmp_path, every=32, verbose=0)
    model.learn(64, callback=resumable)
    model.learn(64, callback=resumable, reset_num_timesteps=False)
    assert model.num_timesteps == 128
    assert timesteps_in(tmp_path) == [128, 96]


def test_spaces_of_the_env_are_compared_by_their_bounds_too(tmp_path):
    def bounded(bound):
        return lambda: RandomEnv(spaces.Box(-np.ones(3), np.array([1.0, bound, 3.0]), dtype=np.float64))

    trained(tmp_path, env=bounded(2.0), total=32)
    with pytest.raises(ValueError, match="observation_space"):
        trained(tmp_path, env=bounded(2.5))


def test_checkpoints_after_a_restart_from_scratch_are_kept_although_broken_ones_are_further(tmp_path):
    trained(tmp_path)
    for path in checkpoints_in(tmp_path):
        os.truncate(path / "state.json", 10)
    with pytest.warns(UserWarning, match="is broken"):
        trained(tmp_path, total=96)
    assert timesteps_in(tmp_path) == [96, 64]


def test_a_disk_that_cannot_be_read_does_not_mean_a_broken_checkpoint(tmp_path, monkeypatch):
    trained(tmp_path, total=64)
    with monkeypatch.context() as patched:
        patched.setattr(Path, "read_bytes", lambda _: raise_error(OSError(5, "Input/output error")))
        with pytest.raises(OSError, match="Input/output error"):
            trained(tmp_path, total=128)
    assert timesteps_in(tmp_path)[0] == 64


class Spawning(RandomEnv):
    """Gets a new object from time to time, which a new env does not have."""

    def __init__(self):
        super().__init__()
        self.foes = []

    def step(self, action):
        if self.n_steps % 5 == 0:
            self.foes = [RunningMeanStd() for _ in range(1 + self.n_steps)]
        return super().step(action)


def test_an_env_with_objects_that_cannot_be_created_again_draws_a_warning_at_the_restart(tmp_path):
    trained(tmp_path, total=64, env=Spawning)
    with pytest.warns(UserWarning, match=r"does not fit the one that is there: env/.*foes.*start again"):
        assert trained(tmp_path, total=128, env=Spawning).num_timesteps == 128


def test_elapsed_time_continues_where_it_was(tmp_path):
    first = trained(tmp_path, total=64, callbacks=[At(33, lambda: time.sleep(1.1))])
    spent = time.time_ns() - first.start_time
    begin = time.time_ns()
    second = trained(tmp_path, total=96)
    assert begin - spent - 10**9 < second.start_time < begin - 1.1e9


def test_the_time_to_the_next_checkpoint_counts_from_the_one_that_was_found(tmp_path):
    def train(*callbacks):
        trained(tmp_path, total=224, callbacks=callbacks, resumable=ResumableCheckpoint(tmp_path, every=96, keep=9, verbose=0))

    with pytest.raises(CrashError):
        train(CrashAt(150))
    train()
    assert timesteps_in(tmp_path) == [224, 192, 96]


class Shrinking(RandomEnv):
    """Becomes one that cannot be encoded during a run."""

    def step(self, action):
        self.secret = iter(()) if self.n_steps == 5 else None
        return super().step(action)


def test_an_env_that_becomes_unsupported_later_draws_a_warning_then(tmp_path, monkeypatch):
    monkeypatch.setattr(Shrinking, "secret", None, raising=False)
    model = small_model(Shrinking(), n_steps=34)
    with pytest.warns(UserWarning, match="its attribute 'secret'") as caught:
        model.learn(34 * 8, callback=ResumableCheckpoint(tmp_path, every=34, verbose=0))
    assert sum("cannot be saved" in str(each.message) for each in caught) == 1


class StoppedAtOnce(BaseCallback):
    """Is sent a signal in a rollout, and ends the training itself."""

    def _on_step(self):
        if self.n_calls == 20:
            terminate()
        return self.n_calls < 20


class SignalledAtTheEnd(BaseCallback):
    """Is sent a signal when the last iteration is over."""

    def _on_step(self):
        return True

    def _on_training_end(self):
        terminate()


@pytest.mark.parametrize("callback", [StoppedAtOnce, SignalledAtTheEnd])
def test_a_signal_that_no_iteration_follows_is_named_too(callback, tmp_path):
    resumable = ResumableCheckpoint(tmp_path, every=10**6)
    trained(tmp_path, resumable=resumable, callbacks=[callback()])
    assert resumable.stopped_by == "SIGTERM"
