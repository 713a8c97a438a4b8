"""Logs that are written before and after a restart, as if there had been none."""

import itertools
import json
import sys
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from helpers.env_states import get_state, sent, set_state
from hypothesis import given, strategies as st
from stable_baselines3.common.logger import HParam, Image, Logger, make_output_format
from stable_baselines3.common.monitor import Monitor, ResultsWriter, load_results
from stable_baselines3.common.utils import configure_logger

from sb3_trpo.checkpoint.codecs.codec import Decoder, Encoder, MismatchError
from sb3_trpo.checkpoint.codecs.logs import PENDING, decode_logger, encode_logger, read_content, replace_content
from sb3_trpo.checkpoint.codecs.registry import CODECS

FILES = ("progress.csv", "progress.json", "log.txt")
FORMATS = ["csv", "json", "log"]
ROWS = [
    {"time/step": 10, "loss": 0.5, "note": 'a "quoted", text'},
    {"time/step": 20, "loss": np.float32(0.25), "eval/mean": 3.0},
    {"time/step": 30, "loss": float("nan"), "éval/ünïcode": "…"},
    {"time/step": 40, "late/key": True, "loss": 1},
    {"time/step": 50, "loss": 2.0, "latest/key": 7},
]


@pytest.fixture(autouse=True)
def _event_files_are_seconds_apart(monkeypatch):
    """Let TensorBoard's event files, which it reads in the order of their names, be named a second apart, as restarts are."""
    writer = pytest.importorskip("tensorboard.summary.writer.event_file_writer")
    seconds = itertools.count(1_700_000_000)
    monkeypatch.setattr(writer, "time", SimpleNamespace(time=lambda: float(next(seconds))))


def write(logger, rows):
    for row in rows:
        for name, value in row.items():
            logger.record(name, value)
        logger.dump(row["time/step"])


def saved(logger):
    """Encode a logger, and send it through JSON and bytes."""
    encoder = Encoder(CODECS)
    node = json.loads(json.dumps(encode_logger(logger, "logger", encoder), allow_nan=False))
    return node, {path: np.frombuffer(each.tobytes(), each.dtype).reshape(each.shape) for path, each in encoder.arrays.items()}


def restore(logger, checkpoint, n_timesteps):
    node, arrays = checkpoint
    decode_logger(node, logger, "logger", Decoder(CODECS, arrays), n_timesteps)


def contents(folder):
    return {name: (folder / name).read_bytes() for name in FILES}


def scalars(folder):
    """Read steps and values as TensorBoard shows them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def open_logger(folder, formats=FORMATS):
    """Open a logger; the fixture in ``conftest.py`` closes it."""
    folder.mkdir(exist_ok=True)
    return Logger(str(folder), [make_output_format(each, str(folder)) for each in formats])


@pytest.mark.parametrize("same_folder", [True, False])
@pytest.mark.parametrize("lost", [0, 1, 2])
@pytest.mark.parametrize("kept", [0, 1, 3])
def test_files_are_those_of_a_run_without_interruption(tmp_path, kept, lost, same_folder):
    whole, early = open_logger(tmp_path / "whole"), open_logger(tmp_path / "early")
    write(whole, ROWS)
    write(early, ROWS[:kept])
    checkpoint = saved(early)
    write(early, [{**row, "lost": 1} for row in ROWS[kept : kept + lost]])
    early.close()
    late_folder = tmp_path / ("early" if same_folder else "late")
    late = open_logger(late_folder)
    assert not any(contents(late_folder).values())
    restore(late, checkpoint, 10 * kept)
    write(late, ROWS[kept:])
    assert contents(late_folder) == contents(tmp_path / "whole")
    assert all(contents(late_folder).values())


def test_rows_that_the_new_run_has_written_before_it_is_restored_are_removed(tmp_path):
    whole, early, late = (open_logger(tmp_path / name) for name in ("whole", "early", "late"))
    write(whole, ROWS)
    write(early, ROWS[:2])
    write(late, [{"time/step": 0, "greeting": "a long line, " * 99, "other": 1}] * 5)
    restore(late, saved(early), 20)
    write(late, ROWS[2:])
    assert contents(tmp_path / "late") == contents(tmp_path / "whole")


def test_a_run_that_is_interrupted_again_and_again_writes_the_same_files(tmp_path):
    formats = [*FORMATS, "tensorboard"]
    whole, logger = open_logger(tmp_path / "whole", formats), open_logger(tmp_path / "run", formats)
    write(whole, ROWS)
    for number, row in enumerate(ROWS):
        write(logger, [row])
        checkpoint = saved(logger)
        write(logger, [{"time/step": row["time/step"] + 10, "lost/key": number, "loss": -1.0}])
        logger.close()
        logger = open_logger(tmp_path / "run", formats)
        restore(logger, checkpoint, row["time/step"])
    for each in (whole, logger):
        each.close()
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")
    assert repr(scalars(tmp_path / "run")["loss"]) == repr(scalars(tmp_path / "whole")["loss"])


def test_text_that_was_logged_is_restored(tmp_path):
    early, late = (open_logger(tmp_path / name, ["log"]) for name in ("early", "late"))
    early.info("Ärger", "mit", 3)
    restore(late, saved(early), 0)
    late.info("more")
    assert (tmp_path / "late" / "log.txt").read_text() == "Ärger mit 3\nmore\n"


def test_pending_values_are_restored(tmp_path):
    whole, early, late = (open_logger(tmp_path / name) for name in ("whole", "early", "late"))
    for logger in (whole, early):
        write(logger, ROWS[:1])
        logger.record("pending", 3, exclude="json")
        logger.record("array", np.arange(3.0, dtype=np.float32))
        logger.record_mean("mean", 1.0)
        logger.record_mean("mean", 4.0)
    late.record("of the new run", 1)
    restore(late, saved(early), 10)
    assert repr([dict(getattr(late, name)) for name in PENDING]) == repr([dict(getattr(early, name)) for name in PENDING])
    for logger in (whole, late):
        logger.record_mean("mean", 7.0)
        logger.dump(20)
    assert contents(tmp_path / "late") == contents(tmp_path / "whole")
    assert json.loads((tmp_path / "late" / "progress.json").read_text().splitlines()[1])["mean"] == 4.0


VALUES = [np.float64(0.1), np.int64(3), float("inf"), None, "text", th.ones(2)]
FIGURES = [HParam({"lr": 0.1}, {"train/loss": 0.0}), Image(th.zeros(3, 2, 2), "CHW")]


@pytest.mark.parametrize("value", [*VALUES, *FIGURES], ids=lambda value: type(value).__name__)
def test_no_pending_value_keeps_a_run_from_continuing(tmp_path, value):
    early, late = (open_logger(tmp_path / name) for name in ("early", "late"))
    write(early, ROWS[:1])
    early.record("waiting", value, exclude=("json", "csv", "log", "stdout"))
    early.record("loss", 0.25)
    restore(late, saved(early), 10)
    assert late.name_to_value["loss"] == 0.25
    late.dump(20)
    assert len((tmp_path / "late" / "progress.csv").read_text().splitlines()) == 3


def test_the_screen_is_left_alone(tmp_path, capsys):
    early, late = (Logger(str(tmp_path), [make_output_format("stdout", str(tmp_path))]) for _ in range(2))
    write(early, ROWS[:1])
    checkpoint = saved(early)
    assert checkpoint[0]["files"] == {}
    capsys.readouterr()
    restore(late, checkpoint, 10)
    assert capsys.readouterr().out == ""
    assert late.output_formats[0].file is sys.stdout


def test_other_formats_than_before_keep_what_they_have(tmp_path):
    early, late = open_logger(tmp_path / "early", ["csv", "json"]), open_logger(tmp_path / "late", ["json", "log", "csv"])
    write(early, ROWS[:2])
    restore(late, saved(early), 20)
    write(late, ROWS[2:3])
    assert len((tmp_path / "late" / "progress.json").read_text().splitlines()) == 1


def test_a_logger_without_a_folder_is_restored():
    early, late = Logger(None, []), Logger(None, [])
    early.record("x", 1)
    restore(late, saved(early), 5)
    assert late.name_to_value == {"x": 1}


@given(content=st.binary(max_size=99), there=st.text(max_size=99))
def test_any_content_can_replace_that_of_an_open_file(tmp_path_factory, content, there):
    path = tmp_path_factory.getbasetemp() / "rewritten"
    with path.open("w", newline="", encoding="utf-8", errors="surrogatepass") as file:
        file.write(there)
        replace_content(file, np.frombuffer(content, np.uint8))
        assert read_content(file).tobytes() == content
        file.write("more")
    assert path.read_bytes() == content + b"more"


# --- TensorBoard ---


def steps(first, last, sign=1.0):
    return [{"time/step": step, "loss": sign * step / 8} for step in range(10 * first, 10 * last + 10, 10)]


EXPECTED = [(step, step / 8) for step in range(10, 90, 10)]


@pytest.fixture
def numbered(tmp_path):
    """Give a logger in TRPO_1 that has logged steps 1 to 4."""
    logger = configure_logger(0, str(tmp_path), "TRPO")
    write(logger, steps(1, 4))
    return logger


def go_on(late, checkpoint):
    """Restore a logger as it was after step 4, and log steps 5 to 8."""
    restore(late, checkpoint, 40)
    write(late, steps(5, 8))
    late.close()


def test_tensorboard_shows_each_step_once_after_several_restarts(tmp_path):
    logger = open_logger(tmp_path, ["tensorboard"])
    for first in (1, 3, 5, 7):
        write(logger, steps(first, first + 1))
        checkpoint = saved(logger)
        write(logger, steps(first + 2, first + 4, sign=-1.0))
        logger.close()
        logger = open_logger(tmp_path, ["tensorboard"])
        restore(logger, checkpoint, 10 * first + 10)
    logger.close()
    assert scalars(tmp_path)["loss"] == EXPECTED


def test_the_numbered_folder_continues_and_the_new_one_is_removed(tmp_path, numbered):
    checkpoint = saved(numbered)
    write(numbered, steps(5, 5, sign=-1.0))
    numbered.close()
    late = configure_logger(0, str(tmp_path), "TRPO")
    assert (tmp_path / "TRPO_2").is_dir()
    go_on(late, checkpoint)
    assert [each.name for each in tmp_path.iterdir()] == ["TRPO_1"]
    assert late.dir == str(tmp_path / "TRPO_1")
    assert scalars(tmp_path / "TRPO_1")["loss"] == EXPECTED


def test_a_new_folder_with_something_else_in_it_stays(tmp_path, numbered):
    late = configure_logger(0, str(tmp_path), "TRPO")
    (tmp_path / "TRPO_2" / "notes.txt").write_text("mine")
    go_on(late, saved(numbered))
    assert [each.name for each in (tmp_path / "TRPO_2").iterdir()] == ["notes.txt"]
    assert scalars(tmp_path / "TRPO_1")["loss"] == EXPECTED


def test_csv_files_beside_tensorboards_in_a_numbered_folder_continue(tmp_path):
    early, late = (open_logger(tmp_path / f"TRPO_{number}", ["csv", "tensorboard"]) for number in (1, 2))
    write(early, steps(1, 4))
    go_on(late, saved(early))
    assert scalars(tmp_path / "TRPO_1")["loss"] == EXPECTED
    assert len((tmp_path / "TRPO_2" / "progress.csv").read_text().splitlines()) == 9


HOSTILE = ["../outside_1", "/{}/outside_1", "..", ".", "", None, "TRPO_1/../../outside_1", "PPO_1", "TRPO_1\n", "TRPO_x"]


@pytest.mark.parametrize("folder", [*HOSTILE, "TRPO_9"])
def test_a_folder_that_is_hostile_or_foreign_or_gone_is_ignored(tmp_path, folder):
    home = tmp_path / "home"
    for name in ("outside_1", "home/PPO_1", "home/TRPO_x"):
        (tmp_path / name).mkdir(parents=True)
    late = configure_logger(0, str(home), "TRPO")
    node, arrays = saved(late)
    node["folder"] = folder and folder.replace("{}", str(tmp_path).strip("/"))
    go_on(late, (node, arrays))
    assert [*(tmp_path / "outside_1").iterdir(), *(home / "PPO_1").iterdir(), *(home / "TRPO_x").iterdir()] == []
    assert scalars(home / "TRPO_1")["loss"] == EXPECTED[4:]
    assert not (home / "TRPO_9").exists()


# --- SB3's Monitor ---


def monitored(path, seed, **arguments):
    env = Monitor(gym.make("CartPole-v1", max_episode_steps=9), path and str(path), **arguments)
    env.action_space.seed(seed)
    env.reset(seed=seed)
    return env


def run(env, n_episodes):
    for _ in range(n_episodes):
        while not any(env.step(env.action_space.sample())[2:4]):
            pass
        env.reset()


def rows_of(path):
    header, *rows = path.read_text().splitlines()
    assert json.loads(header[1:])["env_id"] == "CartPole-v1"
    return [row.split(",")[:2] for row in rows]


@pytest.mark.parametrize("override", [True, False])
@pytest.mark.parametrize("same_folder", [True, False])
def test_the_file_of_a_monitor_continues(tmp_path, same_folder, override):
    whole, early = (monitored(tmp_path / name, seed=1) for name in ("whole", "early"))
    run(whole, 7)
    run(early, 3)
    for _ in range(4):
        early.step(early.action_space.sample())
    state = sent(get_state(early))
    written = (tmp_path / "early.monitor.csv").read_bytes()
    early.reset()
    run(early, 2)
    early.close()
    name = "early" if same_folder else "late"
    late = monitored(tmp_path / name, seed=2, override_existing=override or not same_folder)
    run(late, 1)
    set_state(late, state)
    path = tmp_path / f"{name}.monitor.csv"
    assert path.read_bytes() == written
    run(late, 4)
    assert rows_of(path) == rows_of(tmp_path / "whole.monitor.csv")
    assert len(rows_of(path)) == 8
    assert late.get_episode_rewards() == whole.get_episode_rewards()


class Tired(gym.Wrapper):
    def step(self, action):
        *step, info = self.env.step(action)
        return *step, {**info, "tired": 5}


def test_the_file_of_a_monitor_with_more_columns_continues_and_sb3_reads_it(tmp_path):
    pytest.importorskip("pandas")
    envs = []
    for name in ("early", "late"):
        (tmp_path / name).mkdir()
        envs.append(Monitor(Tired(gym.make("CartPole-v1")), str(tmp_path / name / "m"), info_keywords=("tired",)))
        envs[-1].reset()
    early, late = envs
    run(early, 2)
    set_state(late, sent(get_state(early)))
    run(late, 3)
    assert load_results(str(tmp_path / "late"))["tired"].tolist() == [5] * 5


def test_a_monitor_that_no_longer_writes_or_begins_to_write_continues(tmp_path):
    silent, writing = monitored(None, seed=1), monitored(tmp_path / "early", seed=1)
    begins, stops = monitored(tmp_path / "late", seed=2), monitored(None, seed=2)
    for early, late in ((silent, begins), (writing, stops)):
        run(early, 2)
        set_state(late, sent(get_state(early)))
        assert late.get_episode_lengths() == early.get_episode_lengths()
    assert stops.results_writer is None
    assert isinstance(begins.results_writer, ResultsWriter)
    run(begins, 1)
    assert len(rows_of(tmp_path / "late.monitor.csv")) == 2


def test_a_results_writer_that_is_none_is_refused(tmp_path):
    early, late = (monitored(tmp_path / name, seed=1) for name in ("early", "late"))
    late.results_writer = 3
    with pytest.raises(MismatchError):
        set_state(late, sent(get_state(early)))
