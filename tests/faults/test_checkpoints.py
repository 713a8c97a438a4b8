"""Faults in real processes: runs that are killed, stopped, started twice or short of disk."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest
from helpers import run_to_be_killed
from helpers.forked import Script
from helpers.scripts import environment
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sb3_trpo.checkpoint.run_folder import checkpoints_in
from sb3_trpo.checkpoint.storage import read

ITERATION = 128
TOTAL = 45 * ITERATION
SHORT = 8 * ITERATION
LONGEST_WAIT = {"collect": 0.12, "update": 0.04, "save": 0.015}
"""Seconds, about as long as each stage takes."""


def start(task, folder, total=TOTAL):
    folder.mkdir(exist_ok=True)
    if not task.endswith(" in workers"):  # which would be the server's children, and hear nothing of a Ctrl-C
        return Script(run_to_be_killed.main, task, folder, total)
    command = [sys.executable, "-m", run_to_be_killed.__name__, task, str(folder), str(total)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, env=environment()
    )


def finish(process):
    """Let a process run to its end; returns what it printed."""
    printed, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return printed


def wait_for(process, stage, times):
    """Wait until a stage has begun for some time; tells whether it did before the end."""
    for line in process.stdout:
        times -= line.strip() == stage
        if times == 0:
            return True
    return False


def kill_at(process, stage, times, delay):
    """Kill a process somewhere in a stage; tells whether it lived until then, and has been killed."""
    if wait_for(process, stage, times):
        time.sleep(delay)
        process.kill()
    process.communicate()
    return process.returncode == -signal.SIGKILL


def outcome(folder):
    return json.loads((folder / "outcome.json").read_text())


def steps_in_tensorboard(folder, tag):
    events = EventAccumulator(str(folder / "log"))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)]


@pytest.mark.parametrize(("task", "kills", "total"), [("Hopper-v5", 12, 2 * TOTAL // 3), ("CartPole-v1", 9, TOTAL // 2)])
def test_a_run_killed_many_times_ends_like_one_that_was_not(task, kills, total, tmp_path):
    rng, killed = random.Random(task), Counter()
    whole, pieces = tmp_path / "whole", tmp_path / "pieces"
    whole_process = start(task, whole, total)  # beside the first lives of the other
    for life in range(kills):
        stage = list(LONGEST_WAIT)[life % 3]
        killed[stage] += kill_at(start(task, pieces, total), stage, rng.choice((1, 2)), rng.uniform(0.0, LONGEST_WAIT[stage]))
    finish(whole_process)
    assert not (pieces / "outcome.json").exists()
    printed = finish(start(task, pieces, total))
    assert "Continuing from" in printed
    assert sum(killed.values()) == kills
    assert min(killed.values()) >= kills // 3
    assert outcome(pieces) == outcome(whole)
    assert len(outcome(whole)) > 30
    for tag in ("train/kl_divergence_loss", "eval/mean_reward"):
        rows = steps_in_tensorboard(pieces, tag)
        assert rows == steps_in_tensorboard(whole, tag)
        assert len({step for step, _ in rows}) == len(rows) > total // ITERATION // 2


@pytest.fixture(scope="module")
def short_run(tmp_path_factory):
    """Give the folder of a run of eight iterations that nothing disturbs."""
    folder = tmp_path_factory.mktemp("short")
    finish(start("CartPole-v1", folder, SHORT))
    return folder


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1"])
def test_a_signal_lets_the_run_end_well_and_go_on_later(name, tmp_path, short_run):
    process = start("CartPole-v1", tmp_path, SHORT)
    assert wait_for(process, "update" if name == "SIGTERM" else "collect", 2)
    process.send_signal(getattr(signal, name))
    assert f"stopped by {name}" in finish(process)
    (newest, *_) = checkpoints_in(tmp_path / "run")
    assert read(newest).n_timesteps == 2 * ITERATION, "rollout and update are finished, no more"
    assert "stopped by None" in finish(start("CartPole-v1", tmp_path, SHORT))
    assert outcome(tmp_path) == outcome(short_run)


def test_ctrl_c_reaches_the_workers_too_and_they_stay(tmp_path):
    process = start("CartPole-v1 in workers", tmp_path, 50 * ITERATION)
    assert wait_for(process, "collect", 2)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    assert "stopped by SIGINT" in finish(process)
    assert read(checkpoints_in(tmp_path / "run")[0]).n_timesteps == 2 * ITERATION


def start_in_the_background(task, folder, total):
    """Start a run as a shell script does in the background: SIGINT is ignored."""
    command = [sys.executable, "-m", run_to_be_killed.__name__, task, str(folder), str(total)]
    shell = ["sh", "-c", 'trap "" INT; exec "$@"', "sh", *command]
    return subprocess.Popen(shell, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment())


@pytest.mark.parametrize("start_run", [start, start_in_the_background])
def test_a_second_ctrl_c_interrupts_at_once(start_run, tmp_path):
    process = start_run("Hopper-v5", tmp_path, 500 * ITERATION)
    assert wait_for(process, "collect", 2)
    process.send_signal(signal.SIGINT)
    time.sleep(0.05)  # two that are pending at once are one
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode not in (0, None)
    assert errors.rstrip().endswith("KeyboardInterrupt")
    assert read(checkpoints_in(tmp_path / "run")[0]).n_timesteps == ITERATION


def test_a_second_process_is_refused_and_the_first_goes_on(tmp_path):
    first = start("CartPole-v1", tmp_path / "one", 10_000 * ITERATION)
    assert wait_for(first, "save", 2)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "run").symlink_to(tmp_path / "one" / "run")
    second = start("CartPole-v1", tmp_path / "other", 10_000 * ITERATION)
    _, errors = second.communicate(timeout=60)
    assert second.returncode != 0
    assert "Another run is writing checkpoints" in errors
    first.send_signal(signal.SIGTERM)
    assert "stopped by SIGTERM" in finish(first)
    assert read(checkpoints_in(tmp_path / "one" / "run")[0]).n_timesteps > 2 * ITERATION


@pytest.fixture
def small_disk(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=700k", "tmpfs", str(disk)], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("may not mount a small disk here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_does_not_end_the_run(small_disk, tmp_path, short_run):
    folder = tmp_path / "pieces"
    folder.mkdir()
    (folder / "run").symlink_to(small_disk)
    process = start("CartPole-v1", folder, SHORT)
    assert wait_for(process, "collect", 3)
    free = os.statvfs(small_disk)
    with pytest.raises(OSError, match="No space left"):
        (small_disk / "ballast").write_bytes(bytes(2 * free.f_bfree * free.f_bsize))
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert "No checkpoint could be written" in errors
    assert "No space left on device" in errors
    assert outcome(folder) == outcome(short_run)
    newest = read(checkpoints_in(small_disk)[0])
    assert 0 < newest.n_timesteps < SHORT
    (small_disk / "ballast").unlink()
    (folder / "outcome.json").unlink()
    assert "Continuing from" in finish(start("CartPole-v1", folder, SHORT))
    assert outcome(folder) == outcome(short_run)
