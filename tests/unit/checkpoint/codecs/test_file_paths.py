"""Attributes that look like paths: the script's, unless the run has changed them."""

from functools import partial
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from helpers.codecs import Thing, decode, object_of, round_trip
from helpers.resumable_runs import INTERRUPTED, SMALL, assert_resumes_exactly, trained
from helpers.runs import outcome
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv

from sb3_trpo import TRPO
from sb3_trpo.checkpoint import ResumableCheckpoint
from sb3_trpo.checkpoint.codecs.codec import Decoder, Encoder
from sb3_trpo.checkpoint.codecs.file_paths import FilePaths, Handling, leaves_folder, looks_like_path
from sb3_trpo.checkpoint.codecs.registry import CODECS

TOTAL, EVERY = 384, 64
VEC_ENVS = {
    "here": {"vec_env_cls": DummyVecEnv},
    "in workers": {"vec_env_cls": SubprocVecEnv, "vec_env_kwargs": {"start_method": "fork"}},
}


class Maze(gym.Env):
    """Keeps its moves as text; the reward pays for alternating, so that a lost text changes all that follows."""

    observation_space = spaces.Box(-1.0, 1.0, (2,))
    action_space = spaces.Discrete(2)

    def __init__(self, log_dir="logs/first"):
        self.log_dir = log_dir
        self.path = ""
        self.file = None
        self.part = Part()

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.path, self.part.directory = "", "start"
        return self._observation(), {}

    def step(self, action):
        self.path += "LR"[int(action)]
        self.file, self.part.directory = self.path[-1], self.path[-2:]
        reward = float(self.part.directory in ("LR", "RL")) + 0.1 * (self.file == "L")
        return self._observation(), reward, len(self.path) >= 50, False, {}

    def _observation(self):
        noise = 0.01 * self.np_random.standard_normal()
        return np.array([np.tanh(len(self.path) / 25 + noise), self.path[-5:].count("L") / 5], np.float32)


class Part:
    directory = ""


class Walking(BaseCallback):
    """Keeps what it has seen under a name of a file, and where to write it."""

    def __init__(self, log_path="here"):
        super().__init__()
        self.log_path, self.path = log_path, ""

    def _on_step(self) -> bool:
        self.path = (self.path + "LR"[int(self.locals["actions"][0])])[-20:]
        self.model.gamma = 0.9 + 0.001 * self.path.count("L")
        return True


class Tracing(TRPO):
    """Keeps a text of its own."""

    file = ""

    def train(self):
        super().train()
        self.file = f"{self.file}{self._n_updates}"
        self.gae_lambda = 0.9 + 0.0001 * len(self.file)


def tracing(where, **arguments):
    return Tracing("MlpPolicy", make_vec_env(partial(Maze, **arguments), 2, seed=3, **VEC_ENVS[where]), **SMALL)


@pytest.mark.parametrize("where", VEC_ENVS)
def test_a_text_that_the_run_changes_under_the_name_of_a_path_is_restored(where, tmp_path):
    def script(folder, crash):
        model, walking = tracing(where), Walking()
        try:
            model.learn(TOTAL, callback=[walking, ResumableCheckpoint(folder, every=EVERY, verbose=0), crash])
            texts = {name: model.env.get_attr(name) for name in ("path", "file", "log_dir")}
            return outcome(model, None), walking.path, model.file, texts
        finally:
            model.env.close()

    _, path, file, texts = assert_resumes_exactly(script, tmp_path, 100, 150, 290)
    assert len(path) == 20, "the texts were not empty"
    assert all(texts["path"])
    assert file == "123456"


@INTERRUPTED
@pytest.mark.parametrize("where", VEC_ENVS)
def test_a_path_that_the_run_never_changed_stays_the_scripts(where, tmp_path):
    for total, place in ((128, "first"), (256, "second"), (384, "first")):
        model, walking = tracing(where, log_dir=f"logs/{place}"), Walking(place)
        model.folder = place
        model.learn(total, callback=[walking, ResumableCheckpoint(tmp_path, every=EVERY, verbose=0)])
        assert (model.env.get_attr("log_dir"), model.folder, walking.log_path) == ([f"logs/{place}"] * 2, place, place)
        model.env.close()


class Moving(BaseCallback):
    """Writes to a new absolute place with each rollout."""

    def __init__(self, folder):
        super().__init__()
        self.folder, self.current = str(folder), None

    def _on_rollout_end(self) -> None:
        self.current = f"{self.folder}/{self.num_timesteps}"

    def _on_step(self) -> bool:
        return True


def test_an_absolute_path_that_the_run_changes_is_left_to_the_script_with_one_warning(tmp_path):
    moving, other = Moving(tmp_path / "files"), Moving(tmp_path / "elsewhere")
    with pytest.warns(UserWarning, match="changed a path that is absolute") as caught:
        trained(tmp_path / "run", 128, callbacks=[moving])
    (message,) = [str(each.message) for each in caught if "changed a path that is absolute" in str(each.message)]
    assert "Moving#0/current" in message
    trained(tmp_path / "run", 128, callbacks=[other])
    assert (other.folder, other.current) == (str(tmp_path / "elsewhere"), None)


def state_of(thing, file_paths):
    return Encoder(CODECS, file_paths=file_paths).encode(thing, "v")["state"]


def marked(thing, changed=()):
    """Take note of a thing's paths as they are when training begins."""
    file_paths = FilePaths()
    state_of(thing, file_paths)
    file_paths.begin_training(changed)
    return file_paths


CHANGES = [
    ("path", "a", "a", None),
    ("path", "a", "b", {"changed": "b"}),
    ("path", "", "b", {"changed": "b"}),
    ("path", None, "b", {"changed": "b"}),
    ("path", "a", None, {"changed": None}),
    ("path", "a", 5, {"changed": 5}),
    ("x", "/tmp/a", "/tmp/a", None),
    ("x", "/tmp/a", "b", {"changed": "b"}),
    ("x", "/tmp/a", "/tmp/b", None),  # with a warning
    ("path", "a", "../b", None),
    ("path", Path("a"), Path("b"), None),
    ("x", "a", "b", "b"),
]


@pytest.mark.parametrize(("name", "before", "after", "node"), CHANGES)
def test_a_file_path_is_encoded_if_the_run_has_changed_it(name, before, after, node):
    thing = Thing(**{name: before})
    file_paths = marked(thing)
    setattr(thing, name, after)
    recorded = state_of(thing, file_paths)
    assert recorded == ({} if node is None else {name: node})
    assert file_paths.unrestorable() == ([f"v/{name}"] if node is None and before != after else [])
    fresh = Thing(**{name: before})
    Decoder(CODECS, {}).decode_attributes(fresh, recorded, "v")
    assert getattr(fresh, name) == (after if node is not None else before)


def test_a_file_path_that_has_once_been_changed_stays_state():
    thing = Thing(path="a")
    file_paths = marked(thing)
    for path in ("b", "a"):
        thing.path = path
        assert state_of(thing, file_paths) == {"path": {"changed": path}}
    assert state_of(thing, marked(thing, changed=["v/path"])) == {"path": {"changed": "a"}}, "after a restart, too"


def test_an_object_created_later_may_have_a_path_of_the_scripts():
    thing = Thing(log_dir="logs", writers=[])
    file_paths = marked(thing)
    thing.writers += [Thing(log_dir="logs"), Thing(log_dir="mine")]
    first, second = state_of(thing, file_paths)["writers"]["list"]
    assert first["state"] == {}
    assert second["state"] == {"log_dir": {"changed": "mine"}}


@pytest.mark.parametrize(
    "away", ["/etc/passwd", "/.ssh/x", "~/x", "~other/x", "C:\\x", "C:x", "\\\\host\\x", "..", "../x", "a/../../x"]
)
def test_no_encoding_sets_a_path_outside_the_folder(away):
    assert leaves_folder(away)
    assert not any(map(leaves_folder, ("", "LRL", "a/b", "a..b/c", "...", None, 5)))
    live = Thing(log_path="mine", log="/mine")
    Decoder(CODECS, {}).decode_attributes(live, {"log_path": {"changed": away}, "log": {"changed": {"changed": away}}}, "v")
    assert vars(live) == {"log_path": "mine", "log": "/mine"}


def test_only_a_path_of_the_same_name_counts_as_the_scripts():
    """An attribute that comes into being during the run is state, even if something else was given the same text."""
    file_paths = FilePaths({"env/0/file": "", "env/0/log_path": "runs"}, before_training=False)
    assert file_paths.classify("env/0/path", "path", "") is Handling.ENCODE_CHANGED
    assert file_paths.classify("env/0/file", "file", "") is Handling.LEAVE
    assert file_paths.classify("env/0/inner/path", "path", "runs") is Handling.ENCODE_CHANGED
    assert file_paths.classify("env/0/inner/log_path", "log_path", "runs") is Handling.LEAVE


def test_paths_of_each_env_are_split_off_and_merged():
    file_paths = FilePaths(
        {"env/0/env/path": "a", "env/11/env/path": "b", "env/path": "c"}, {"env/1/env/file": True}, before_training=False
    )
    parts = file_paths.split("env", 12)
    assert parts[0].given == {"env/path": "a"}
    assert parts[11].given == {"env/path": "b"}
    assert parts[1].changed == {"env/file": True}
    assert parts[11].classify("env/path", "path", "LR") is Handling.ENCODE_CHANGED
    file_paths.merge(parts[11], "env/11/")
    assert file_paths.classify("env/11/env/path", "path", "b") is Handling.ENCODE_CHANGED
    assert file_paths.classify("env/0/env/path", "path", "a") is Handling.LEAVE


def test_a_name_or_an_absolute_value_makes_a_path():
    paths = [("x", "/tmp/log"), ("x", "~/log"), ("x", "C:\\log"), ("log_path", "log"), ("Folder", "a")]
    others = [("x", "a"), ("x", ""), ("x", "a/b"), ("x", b"/tmp"), ("path", 5), ("path", None)]
    assert [looks_like_path(*each) for each in paths] == [True] * len(paths)
    assert [looks_like_path(*each) for each in others] == [False] * len(others)


def test_paths_of_an_object_stay_the_scripts_whatever_an_encoding_has():
    live = Thing(log="/new/place", name="/new", other="plain")
    round_trip(Thing(log="/old/place", name="old", other="/old", files=["a/b"]), live)
    assert vars(live) == {"log": "/new/place", "name": "/new", "other": "plain", "files": ["a/b"]}
    decode(object_of(live, other="/etc/passwd", fresh="~/x", log_path="x", files=5), live)
    assert vars(live) == {"log": "/new/place", "name": "/new", "other": "plain", "files": 5}
