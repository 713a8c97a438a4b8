import gc
import shutil
import subprocess
import sys
import threading

import huggingface_hub
import pytest
import rl_zoo3
from helpers.contract_tools import same_parameters
from huggingface_hub.errors import EntryNotFoundError
from rl_zoo3 import exp_manager, hyperparams_opt
from rl_zoo3.utils import ALGOS
from stable_baselines3.common import callbacks

from sb3_trpo import TRPO
from sb3_trpo.maskable import MaskableTRPO
from sb3_trpo.zoo.algorithms import ALGORITHMS
from sb3_trpo.zoo.experiment import ExperimentManager
from sb3_trpo.zoo.masking import PLAYERS, TEST_ENV
from sb3_trpo.zoo.patches import install, replaced

MODULES = (rl_zoo3, rl_zoo3.utils, exp_manager, hyperparams_opt, callbacks, subprocess)
CLASSES = (TRPO, MaskableTRPO, *ALGORITHMS.values(), exp_manager.ExperimentManager, callbacks.EvalCallback)
REGISTRIES = (ALGOS, hyperparams_opt.HYPERPARAMS_SAMPLER, hyperparams_opt.HYPERPARAMS_CONVERTER)


def everything():
    """Copy what a script could find replaced: names in modules, and entries of registries."""
    return [dict(vars(module)) for module in MODULES], [dict(registry) for registry in REGISTRIES]


@pytest.mark.parametrize("playing", [False, True])
def test_everything_is_undone_at_the_end_and_no_class_is_changed(playing):
    before, classes = everything(), [dict(vars(each)) for each in CLASSES]
    installed = install(playing)
    assert everything() != before
    assert [dict(vars(each)) for each in CLASSES] == classes
    installed.close()
    assert everything() == before


def test_what_is_installed_stays_if_nobody_keeps_the_context():
    before = everything()
    with install():  # to undo everything in the end
        install(playing=True)
        gc.collect()
        assert ALGOS["trpo_mask"] is PLAYERS["trpo_mask"]
        assert exp_manager.ExperimentManager is ExperimentManager
    assert everything() == before


def test_our_algorithms_replace_trpo_and_join_the_others():
    before = dict(ALGOS)
    with install():
        assert {**before, **ALGORITHMS} == ALGOS
        assert exp_manager.ExperimentManager is ExperimentManager
    with install(playing=True):
        assert {**before, **ALGORITHMS, **PLAYERS} == ALGOS


def test_models_ask_the_test_environments_of_a_script_for_masks():
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


def test_only_rl_zoos_record_video_is_replaced(monkeypatch):
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


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A folder that stands for the Hub."""
    hub = tmp_path / "the_hub"

    def upload_folder(self, *, repo_id, folder_path, commit_message):
        shutil.copytree(folder_path, hub / repo_id)

    def hf_hub_download(*, repo_id, filename, **_):
        if not (hub / repo_id / filename).is_file():
            raise EntryNotFoundError(filename)
        return str(hub / repo_id / filename)

    def snapshot_download(self, *, repo_id, local_dir):
        local_dir.mkdir(parents=True)  # the repository is new

    faked = {"upload_folder": upload_folder, "snapshot_download": snapshot_download}
    for name, function in faked.items():
        monkeypatch.setattr(huggingface_hub.HfApi, name, function)
    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", lambda self, **_: "https://example.org")
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hf_hub_download)
    monkeypatch.setenv("TRUST_REMOTE_CODE", "True")
    monkeypatch.delitem(sys.modules, "rl_zoo3.load_from_hub", raising=False)  # runpy warns if a script has been imported
    return hub


def test_an_agent_goes_to_the_hub_and_comes_back(hub, trained, run_zoo, tmp_path):
    run_zoo("push_to_hub", "--algo", "trpo", "--env", "CartPole-v1", "-f", trained.parents[1], "--no-render", "-orga", "you")
    card = (hub / "you" / "trpo-CartPole-v1" / "README.md").read_text()
    assert "name: TRPO\n" in card
    assert "type: mean_reward\n" in card
    run_zoo("load_from_hub", "--algo", "trpo", "--env", "CartPole-v1", "-f", tmp_path / "logs", "-orga", "you")
    loaded, before = (TRPO.load(each / "CartPole-v1.zip") for each in (tmp_path / "logs/trpo/CartPole-v1_1", trained))
    assert same_parameters(loaded.policy, before.policy)
