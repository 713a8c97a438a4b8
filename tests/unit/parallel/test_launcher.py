import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch as th
import torch.distributed as dist
from helpers.ranks import free_port, in_ranks, launched

from sb3_trpo.parallel import launcher
from sb3_trpo.parallel.distributed import connect
from sb3_trpo.parallel.launcher import PROCESS_GROUP, VARIABLES, ProcessGroup, meet


@pytest.mark.parametrize(("given", "missing"), [
    ((), "RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT is"),
    (("RANK", "MASTER_ADDR"), "WORLD_SIZE, MASTER_PORT is"),
    (("WORLD_SIZE", "RANK", "MASTER_ADDR"), "but MASTER_PORT is"),
])  # fmt: skip
def test_variables_that_the_launcher_has_not_set_are_named(monkeypatch, given, missing):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name in given:
        monkeypatch.setenv(name, "2")
    with pytest.raises(ValueError, match=rf"{missing} missing\. Start the script with torchrun, .* give distributed=False"):
        ProcessGroup().form()
    assert not dist.is_initialized()


def test_a_group_that_was_never_formed_can_be_left():
    group = ProcessGroup()
    group.leave(KeyError("nobody reads this"))
    group.require_not_left()
    assert not group.is_open


def error_text(task, *args):
    with pytest.raises(RuntimeError) as raised:
        task(*args)
    return str(raised.value)


def come_and_go(rank):
    cpu = th.device("cpu")
    communicator = connect(True, cpu)
    total = int(communicator.sum(th.tensor(5)))
    PROCESS_GROUP.leave()
    PROCESS_GROUP.leave()
    return total, dist.is_initialized(), error_text(communicator.sum, th.tensor(5)), error_text(connect, True, cpu)


def test_a_process_that_has_left_cannot_come_back():
    [(total, is_initialized, *errors)] = in_ranks(1, come_and_go)
    assert total == 5
    assert not is_initialized
    assert all("left the other ranks" in text and "start the script again" in text for text in errors)


def test_restarted_ranks_meet_in_a_store_that_still_knows_the_dead():
    store, words = dist.HashStore(), []
    for _ in range(3):
        with ThreadPoolExecutor(3) as pool:
            (word,) = {*pool.map(lambda rank: meet(store, rank, 3), range(3))}
        words.append(word)
    assert len({*words}) == 3


def test_missing_ranks_are_named_before_the_first_rank_gives_up(monkeypatch, capsys):
    monkeypatch.setattr(launcher, "REMINDER", 0.0)
    monkeypatch.setattr(launcher, "TIMEOUT", 0.1)
    with pytest.raises(RuntimeError, match=r"In 0 seconds of 3 ranks 1, 2 have not joined the run\."):
        meet(dist.HashStore(), 0, 3)
    printed = capsys.readouterr().out
    assert printed.count("sb3_trpo is waiting: of 3 ranks 1, 2 have not joined the run.") == 1
    assert "distributed=False" in printed


LEAVE_AT_THE_END = """
import weakref
import torch.distributed as dist
from sb3_trpo import TRPO
from sb3_trpo.parallel.launcher import PROCESS_GROUP

TRPO("MlpPolicy", "CartPole-v1", n_steps=8, batch_size=8, distributed=True).learn(8)
group = weakref.ref(dist.group.WORLD)
assert group() is not None
PROCESS_GROUP.leave()
assert group() is None, "something keeps the process group"
"""


def test_nothing_keeps_the_process_group_after_the_end():
    """Otherwise gloo's threads outlive the interpreter, and now and then abort the process."""
    # a new interpreter, because it depends on what is imported before the group is formed
    variables = os.environ | launched(0, 1, free_port())
    command = [sys.executable, "-c", LEAVE_AT_THE_END]
    result = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
