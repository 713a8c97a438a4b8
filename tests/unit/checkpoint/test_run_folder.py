"""The folder of a run: its checkpoints, its owner, and what is removed."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import pytest
from helpers.small_checkpoints import is_intact, leftovers, write_one

from sb3_trpo.checkpoint import run_folder
from sb3_trpo.checkpoint.limits import MANIFEST, STATE
from sb3_trpo.checkpoint.run_folder import LOCK, checkpoints_in, keep_newest, newest_intact, sole_owner
from sb3_trpo.checkpoint.storage import read, timesteps_of


def all_in(folder):
    return [timesteps_of(path) for path in checkpoints_in(folder)]


def test_checkpoints_are_listed_newest_first_and_nothing_else_is(tmp_path):
    for n_timesteps in (5, 999_999_999_999, 10**12, 40):
        write_one(tmp_path, n_timesteps)
    for name in ("", "1a", "-1", "9.old", "9" * 19):
        (tmp_path / f"checkpoint-{name}").mkdir()
    for name in ("writing-checkpoint-9", "xcheckpoint-9", LOCK):
        (tmp_path / name).mkdir()
    assert [read(path).n_timesteps for path in checkpoints_in(tmp_path)] == [10**12, 999_999_999_999, 40, 5]


def test_no_folder_holds_no_checkpoints(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    for name in ("missing", "file"):
        assert checkpoints_in(tmp_path / name) == []
        assert newest_intact(tmp_path / name) is None


@pytest.mark.parametrize("keep", [1, 2, 3, 9])
def test_the_newest_are_kept(tmp_path, keep):
    for n_timesteps in (30, 5, 1000, 200):
        write_one(tmp_path, n_timesteps)
    (tmp_path / "mine").mkdir()
    keep_newest(checkpoints_in(tmp_path)[0], keep)
    assert all_in(tmp_path) == [1000, 200, 30, 5][:keep]
    assert not leftovers(tmp_path)
    assert (tmp_path / "mine").exists()


def test_half_of_a_removed_checkpoint_does_not_look_like_a_whole_one(tmp_path, monkeypatch):
    for n_timesteps in (1, 2):
        write_one(tmp_path, n_timesteps)
    monkeypatch.setattr(shutil, "rmtree", lambda path, **kwargs: (path / STATE).unlink())
    keep_newest(checkpoints_in(tmp_path)[0], 1)
    assert all_in(tmp_path) == [2]


class Stuck:
    """Make the removal of some folders fail, as files that others hold open or own do."""

    def __init__(self, monkeypatch, step, *names):
        self.names = names
        self.rename, self.rmtree = Path.rename, shutil.rmtree
        if step == "rename":
            monkeypatch.setattr(Path, "rename", lambda path, target: self.fail(path) or self.rename(path, target))
        else:
            monkeypatch.setattr(shutil, "rmtree", self.remove)

    def fail(self, path):
        if any(name in path.name for name in self.names):
            raise PermissionError(13, "Permission denied", str(path))

    def remove(self, path, ignore_errors=False):
        if not ignore_errors:
            self.fail(path)
        if not any(name in path.name for name in self.names):
            self.rmtree(path)


@pytest.mark.parametrize("step", ["rename", "rmtree"])
def test_one_that_cannot_be_removed_keeps_no_other_and_is_removed_later(tmp_path, monkeypatch, step):
    for n_timesteps in range(1, 6):
        write_one(tmp_path, n_timesteps)
    with monkeypatch.context() as patched:
        Stuck(patched, step, "000002")
        faults = keep_newest(checkpoints_in(tmp_path)[0], 2)
        assert [type(error) for error in faults.values()] == [PermissionError]
        assert all_in(tmp_path) == ([5, 4, 2] if step == "rename" else [5, 4])
        assert leftovers(tmp_path) == ([] if step == "rename" else ["removing-checkpoint-000000000002"])
        write_one(tmp_path, 6)
        assert len(keep_newest(checkpoints_in(tmp_path)[0], 2)) == 1
        assert all_in(tmp_path)[:2] == [6, 5]
    assert keep_newest(checkpoints_in(tmp_path)[0], 2) == {}
    assert all_in(tmp_path) == [6, 5]
    assert not leftovers(tmp_path)


def test_leftovers_that_stay_do_not_keep_a_checkpoint_of_the_same_name_from_being_written_and_removed(tmp_path, monkeypatch):
    for name in ("writing-checkpoint-000000000001", "removing-checkpoint-000000000001"):
        (tmp_path / name).mkdir()
        (tmp_path / name / STATE).write_bytes(b"")
    Stuck(monkeypatch, "rmtree", "writing-checkpoint-000000000001", "removing-checkpoint-000000000001")
    with sole_owner(tmp_path):
        write_one(tmp_path, 1)
        write_one(tmp_path, 1)  # in place of one that is broken
        write_one(tmp_path, 2)
        assert len(keep_newest(tmp_path / "checkpoint-000000000002", 1)) == 4
    assert all_in(tmp_path) == [2]


def test_as_much_as_possible_of_a_folder_is_removed(tmp_path, monkeypatch):
    write_one(tmp_path, 1)
    write_one(tmp_path, 2)
    unlink = os.unlink

    def refuse(path, *args, **kwargs):
        if str(path).endswith(MANIFEST):
            raise PermissionError(13, "Permission denied")
        unlink(path, *args, **kwargs)

    monkeypatch.setattr(os, "unlink", refuse)
    (path,) = keep_newest(tmp_path / "checkpoint-000000000002", 1)
    assert path.name == "checkpoint-000000000001"
    assert [each.name for each in (tmp_path / "removing-checkpoint-000000000001").iterdir()] == [MANIFEST]


def test_a_newest_checkpoint_that_has_vanished_is_no_error(tmp_path):
    for n_timesteps in (1, 2, 3):
        write_one(tmp_path, n_timesteps)
    shutil.rmtree(tmp_path / "checkpoint-000000000003")
    assert keep_newest(tmp_path / "checkpoint-000000000003", 2) == {}
    assert all_in(tmp_path) == [2]


def test_the_newest_intact_one_is_read_and_broken_ones_are_skipped_with_a_warning_that_names_them(tmp_path):
    paths = [write_one(tmp_path, n_timesteps) for n_timesteps in (1, 2, 3)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert newest_intact(tmp_path).n_timesteps == 3
    (paths[2] / STATE).unlink()
    shutil.rmtree(paths[1])
    paths[1].write_bytes(b"a file")
    with pytest.warns(UserWarning, match="skipped") as caught:
        assert newest_intact(tmp_path).n_timesteps == 1
    assert all(str(path) in str(each.message) for path, each in zip((paths[2], paths[1]), caught, strict=True))


def test_where_all_are_broken_there_is_none(tmp_path):
    (write_one(tmp_path) / MANIFEST).unlink()
    with pytest.warns(UserWarning, match="checkpoint-000000000100"):
        assert newest_intact(tmp_path) is None


def test_a_folder_is_made_with_its_parents_and_owned_again_and_again(tmp_path):
    folder = tmp_path / "a" / "b"
    for _ in range(2):
        with sole_owner(folder):
            write_one(folder)
    assert is_intact(folder / "checkpoint-000000000100", 100)


def test_what_a_killed_process_left_is_cleared_and_nothing_else(tmp_path):
    path = write_one(tmp_path)
    (tmp_path / f"writing-{os.getpid()}").mkdir()  # the killed process may have had the same number
    for name in ("writing-checkpoint-000000000200", "removing-checkpoint-000000000050", f"writing-{os.getpid() + 1}"):
        (tmp_path / name / "deep").mkdir(parents=True)
        (tmp_path / name / STATE).write_bytes(b"{")
    (tmp_path / "mine").mkdir()
    with sole_owner(tmp_path):
        assert {each.name for each in tmp_path.iterdir()} == {path.name, "mine", LOCK}
        assert is_intact(path, 100)


def test_a_second_owner_is_refused_with_the_folder_in_another_thread_as_well(tmp_path):
    caught = []

    def own():
        try:
            with sole_owner(tmp_path):
                caught.append("owned")
        except RuntimeError as error:
            caught.append(str(error))

    with sole_owner(tmp_path):
        (tmp_path / "writing-checkpoint-1").mkdir()
        own()
        (thread := threading.Thread(target=own)).start()
        thread.join()
        assert leftovers(tmp_path) == ["writing-checkpoint-1"]
    own()
    assert caught[2:] == ["owned"]
    assert all("Another run" in each and str(tmp_path) in each for each in caught[:2])


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError, SystemExit])
def test_a_folder_is_free_again_whatever_happens(tmp_path, error):
    with pytest.raises(error), sole_owner(tmp_path):
        raise error
    with sole_owner(tmp_path):
        pass


OWNER = """
import importlib.util, sys, time
from pathlib import Path
spec = importlib.util.spec_from_file_location("run_folder", sys.argv[1])
storage = importlib.util.module_from_spec(spec)
spec.loader.exec_module(storage)
with storage.sole_owner(Path(sys.argv[2])):
    (Path(sys.argv[2]) / "writing-checkpoint-000000000007").mkdir()
    print("owned", flush=True)
    time.sleep(60)
"""


def test_another_process_is_kept_out_until_the_owner_is_killed(tmp_path):
    path, command = write_one(tmp_path), [sys.executable, "-c", OWNER, run_folder.__file__, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "owned\n"
            with pytest.raises(RuntimeError, match="Another run"), sole_owner(tmp_path):
                raise AssertionError("two owners")
            assert leftovers(tmp_path) == ["writing-checkpoint-000000000007"]
        finally:
            process.kill()
    assert process.returncode == -signal.SIGKILL
    with sole_owner(tmp_path):
        assert not leftovers(tmp_path)
        assert is_intact(path, 100)
        result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert result.returncode == 1
    assert "RuntimeError: Another run" in result.stderr


@pytest.mark.parametrize("folder", ["file", "file/below", "file/far/below", "/proc/run", "/proc/self/run", "/sys/run"])
def test_a_folder_that_cannot_be_created_is_reported(tmp_path, folder):
    (tmp_path / "file").write_bytes(b"mine")
    with pytest.raises(OSError, match=f"cannot be written to {tmp_path / folder}"), sole_owner(tmp_path / folder):
        raise AssertionError("owned")
    assert (tmp_path / "file").read_bytes() == b"mine"


@pytest.mark.parametrize("name", ["mkdir", "rmdir"])
def test_a_folder_that_cannot_be_written_to_is_reported(tmp_path, monkeypatch, name):
    real = getattr(Path, name)

    def refuse(path, *args, **kwargs):
        if path.name.startswith("writing-"):
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(path, *args, **kwargs)

    monkeypatch.setattr(Path, name, refuse)
    with pytest.raises(OSError, match="Permission denied") as caught, sole_owner(tmp_path):
        raise AssertionError("owned")
    assert str(tmp_path) in str(caught.value)
