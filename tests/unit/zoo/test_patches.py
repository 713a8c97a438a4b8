import subprocess
import sys
import threading

import pytest
import rl_zoo3
from rl_zoo3 import exp_manager, hyperparams_opt
from rl_zoo3.utils import ALGOS
from stable_baselines3.common import callbacks

from sb3_trpo import TRPO
from sb3_trpo.maskable import MaskableTRPO
from sb3_trpo.zoo.algorithms import ALGORITHMS
from sb3_trpo.zoo.experiment import ExperimentManager
from sb3_trpo.zoo.masking import PLAYERS, TEST_ENV
from sb3_trpo.zoo.patches import install, replaced

OWNERS = (rl_zoo3, rl_zoo3.utils, exp_manager, hyperparams_opt, callbacks, subprocess, TRPO, MaskableTRPO)
REGISTRIES = (ALGOS, hyperparams_opt.HYPERPARAMS_SAMPLER, hyperparams_opt.HYPERPARAMS_CONVERTER)


def everything():
    """What a script could find replaced: names of modules and classes, and registries' entries."""
    return [dict(vars(owner)) for owner in OWNERS], [dict(registry) for registry in REGISTRIES]


@pytest.mark.parametrize("playing", [False, True])
def test_everything_is_undone_at_the_end(playing):
    before = everything()
    with install(playing):
        assert everything() != before
    assert everything() == before


def test_no_class_is_changed():
    classes = (TRPO, *ALGORITHMS.values(), exp_manager.ExperimentManager, callbacks.EvalCallback)
    before = [dict(vars(each)) for each in classes]
    with install(playing=True):
        assert [dict(vars(each)) for each in classes] == before


def test_our_algorithms_replace_trpo_and_join_the_others():
    before = dict(ALGOS)
    with install():
        assert {**before, **ALGORITHMS} == ALGOS
        assert exp_manager.ExperimentManager is ExperimentManager
    with install(playing=True):
        assert {**before, **ALGORITHMS, **PLAYERS} == ALGOS


def test_a_plain_call_stays_until_it_is_closed():
    before = everything()
    installed = install()
    assert ALGOS["trpo"] is TRPO
    installed.close()
    assert everything() == before


def test_a_script_that_creates_test_environments_makes_them_those_to_ask_for_masks():
    with install(playing=True):
        env = rl_zoo3.create_test_env("CartPole-v1", should_render=False, hyperparams={})
        assert TEST_ENV.get() is env
        seen = []
        thread = threading.Thread(target=lambda: seen.append(TEST_ENV.get()))
        thread.start()
        thread.join()
        assert seen == [None], "each thread has its own"
        env.close()
    assert TEST_ENV.get() is None


def test_only_rl_zoos_record_video_is_exchanged(monkeypatch):
    commands = []
    monkeypatch.setattr("sb3_trpo.zoo.patches.run_process", lambda command, **_: commands.append(command) or 0)
    with install():
        subprocess.call(["python", "-m", "rl_zoo3.record_video", "--env", "X"])
        subprocess.call(["python", "-m", "rl_zoo3.train"])
        subprocess.call("ls", shell=True)
    assert commands == [
        [sys.executable, "-m", "sb3_trpo.zoo", "record_video", "--env", "X"],
        ["python", "-m", "rl_zoo3.train"],
        "ls",
    ]


def test_a_replacement_is_undone_after_an_error():
    with pytest.raises(ZeroDivisionError), replaced(sys, "maxsize", 0):
        1 / sys.maxsize
    assert sys.maxsize > 1
