"""Logs that are written before and after a restart, as if there had been none."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from helpers.env_states import get_state, set_state
from hypothesis import given, strategies as st
from stable_baselines3.common.logger import HParam, Image, Logger, configure, make_output_format
from stable_baselines3.common.monitor import Monitor, ResultsWriter, load_results
from stable_baselines3.common.utils import configure_logger

from sb3_trpo.checkpoint.codecs.codec import Decoder, Encoder, MismatchError
from sb3_trpo.checkpoint.codecs.environments import EnvState
from sb3_trpo.checkpoint.codecs.logs import PENDING, decode_logger, encode_logger, read_content, replace_content
from sb3_trpo.checkpoint.codecs.registry import CODECS

FILES = ("progress.csv", "progress.json", "log.txt")
FORMATS = ["csv", "json", "log"]
ROWS: list[dict[str, Any]] = [
    {"time/step": 10, "loss": 0.5, "note": 'a "quoted", text'},
    {"time/step": 20, "loss": np.float32(0.25), "eval/mean": 3.0},
    {"time/step": 30, "loss": float("nan"), "éval/ünïcode": "…"},
    {"time/step": 40, "late/key": True, "loss": 1},
    {"time/step": 50, "loss": 2.0, "latest/key": 7},
]


@pytest.fixture(autouse=True)
def _event_files_are_seconds_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let TensorBoard's event files, which it reads in the order of their names, be named a second apart, as restarts are."""
    writer = pytest.importorskip("tensorboard.summary.writer.event_file_writer")
    seconds = itertools.count(1_700_000_000)
    monkeypatch.setattr(writer, "time", SimpleNamespace(time=lambda: float(next(seconds))))


def write(logger: Logger, rows: list[dict[str, Any]]) -> None:
    for row in rows:
        for name, value in row.items():
            logger.record(name, value)
        logger.dump(row["time/step"])


def saved(logger: Logger) -> tuple[Any, dict[str, np.ndarray]]:
    """Record a logger, and send it through JSON and bytes."""
    encoder = Encoder(CODECS)
    node = json.loads(json.dumps(encode_logger(logger, "logger", encoder), allow_nan=False))
    return node, {path: np.frombuffer(each.tobytes(), each.dtype).reshape(each.shape) for path, each in encoder.arrays.items()}


def restore(logger: Logger, checkpoint: tuple[Any, dict[str, np.ndarray]], n_timesteps: int) -> None:
    node, arrays = checkpoint
    decode_logger(node, logger, "logger", Decoder(CODECS, arrays), n_timesteps)


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in FILES}


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Read steps and values as TensorBoard shows them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


@pytest.fixture
def loggers() -> Iterator[Any]:
    """Open loggers that are closed in the end."""
    opened: list[Logger] = []

    def open_logger(folder: Path, formats: list[str] = FORMATS) -> Logger:
        folder.mkdir(exist_ok=True)
        opened.append(Logger(str(folder), [make_output_format(each, str(folder)) for each in formats]))
        return opened[-1]

    yield open_logger
    for logger in opened:
        logger.close()


@pytest.mark.parametrize("same_folder", [True, False])
@pytest.mark.parametrize("lost", [0, 1, 2])
@pytest.mark.parametrize("kept", [0, 1, 3])
def test_files_are_those_of_a_run_without_interruption(
    tmp_path: Path, loggers: Any, kept: int, lost: int, same_folder: bool
) -> None:
    whole, early = loggers(tmp_path / "whole"), loggers(tmp_path / "early")
    write(whole, ROWS)
    write(early, ROWS[:kept])
    checkpoint = saved(early)
    write(early, [{**row, "lost": 1} for row in ROWS[kept : kept + lost]])
    early.close()
    late_folder = tmp_path / ("early" if same_folder else "late")
    late = loggers(late_folder)
    assert not any(contents(late_folder).values())
    restore(late, checkpoint, 10 * kept)
    write(late, ROWS[kept:])
    assert contents(late_folder) == contents(tmp_path / "whole")
    assert all(contents(late_folder).values())


def test_rows_that_the_new_run_has_written_before_it_is_restored_are_removed(tmp_path: Path, loggers: Any) -> None:
    whole, early, late = (loggers(tmp_path / name) for name in ("whole", "early", "late"))
    write(whole, ROWS)
    write(early, ROWS[:2])
    write(late, [{"time/step": 0, "greeting": "a long line, " * 99, "other": 1}] * 5)
    restore(late, saved(early), 20)
    write(late, ROWS[2:])
    assert contents(tmp_path / "late") == contents(tmp_path / "whole")


def test_a_run_that_is_interrupted_again_and_again_writes_the_same_files(tmp_path: Path, loggers: Any) -> None:
    write(loggers(tmp_path / "whole"), ROWS)
    logger = loggers(tmp_path / "run")
    for number, row in enumerate(ROWS):
        write(logger, [row])
        checkpoint = saved(logger)
        write(logger, [{"time/step": 0, "lost/key": number}])
        logger.close()
        logger = loggers(tmp_path / "run")
        restore(logger, checkpoint, row["time/step"])
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")


def test_text_that_was_logged_is_restored(tmp_path: Path, loggers: Any) -> None:
    early, late = (loggers(tmp_path / name, ["log"]) for name in ("early", "late"))
    early.info("Ärger", "mit", 3)
    restore(late, saved(early), 0)
    late.info("more")
    assert (tmp_path / "late" / "log.txt").read_text() == "Ärger mit 3\nmore\n"


def test_pending_values_are_restored(tmp_path: Path, loggers: Any) -> None:
    whole, early, late = (loggers(tmp_path / name) for name in ("whole", "early", "late"))
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


@pytest.mark.parametrize(
    "value",
    [
        np.float64(0.1),
        np.int64(3),
        float("inf"),
        None,
        "text",
        th.ones(2),
        HParam({"lr": 0.1}, {"train/loss": 0.0}),
        Image(th.zeros(3, 2, 2), "CHW"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_no_pending_value_keeps_a_run_from_continuing(tmp_path: Path, loggers: Any, value: Any) -> None:
    early, late = (loggers(tmp_path / name) for name in ("early", "late"))
    write(early, ROWS[:1])
    early.record("waiting", value, exclude=("json", "csv", "log", "stdout"))
    early.record("loss", 0.25)
    restore(late, saved(early), 10)
    assert late.name_to_value["loss"] == 0.25
    late.dump(20)
    assert len((tmp_path / "late" / "progress.csv").read_text().splitlines()) == 3


def test_the_screen_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    early, late = (Logger(str(tmp_path), [make_output_format("stdout", str(tmp_path))]) for _ in range(2))
    write(early, ROWS[:1])
    checkpoint = saved(early)
    assert checkpoint[0]["files"] == {}
    capsys.readouterr()
    restore(late, checkpoint, 10)
    assert capsys.readouterr().out == ""
    assert late.output_formats[0].file is sys.stdout


def test_other_formats_than_before_keep_what_they_have(tmp_path: Path, loggers: Any) -> None:
    early, late = loggers(tmp_path / "early", ["csv", "json"]), loggers(tmp_path / "late", ["json", "log", "csv"])
    write(early, ROWS[:2])
    restore(late, saved(early), 20)
    write(late, ROWS[2:3])
    assert len((tmp_path / "late" / "progress.json").read_text().splitlines()) == 1


def test_a_logger_without_a_folder_is_restored() -> None:
    early, late = Logger(None, []), Logger(None, [])
    early.record("x", 1)
    restore(late, saved(early), 5)
    assert late.name_to_value == {"x": 1}


@given(content=st.binary(max_size=99), there=st.text(max_size=99))
def test_any_content_can_replace_that_of_an_open_file(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, there: str
) -> None:
    path = tmp_path_factory.getbasetemp() / "rewritten"
    with path.open("w", newline="", encoding="utf-8", errors="surrogatepass") as file:
        file.write(there)
        replace_content(file, np.frombuffer(content, np.uint8))
        assert read_content(file).tobytes() == content
        file.write("more")
    assert path.read_bytes() == content + b"more"


# --- TensorBoard ---


def tensorboard_rows(first: int, last: int, sign: float = 1.0) -> list[dict[str, Any]]:
    return [{"time/step": step, "loss": sign * step / 8} for step in range(10 * first, 10 * last + 10, 10)]


EXPECTED = [(step, step / 8) for step in range(10, 90, 10)]


def test_tensorboard_shows_each_step_once(tmp_path: Path, loggers: Any) -> None:
    early = loggers(tmp_path, ["tensorboard"])
    write(early, tensorboard_rows(1, 4))
    checkpoint = saved(early)
    write(early, tensorboard_rows(5, 6, sign=-1.0))
    early.close()
    late = loggers(tmp_path, ["tensorboard"])
    restore(late, checkpoint, 40)
    write(late, tensorboard_rows(5, 8))
    assert scalars(tmp_path)["loss"] == EXPECTED


def test_tensorboard_shows_each_step_once_after_several_restarts(tmp_path: Path, loggers: Any) -> None:
    logger = loggers(tmp_path, ["tensorboard"])
    for first in (1, 3, 5, 7):
        write(logger, tensorboard_rows(first, first + 1))
        checkpoint = saved(logger)
        write(logger, tensorboard_rows(first + 2, first + 4, sign=-1.0))
        logger.close()
        logger = loggers(tmp_path, ["tensorboard"])
        restore(logger, checkpoint, 10 * first + 10)
    logger.close()
    assert scalars(tmp_path)["loss"] == EXPECTED


def test_the_numbered_folder_continues_and_the_new_one_is_removed(tmp_path: Path) -> None:
    early = configure_logger(0, str(tmp_path), "TRPO")
    write(early, tensorboard_rows(1, 4))
    checkpoint = saved(early)
    write(early, tensorboard_rows(5, 5, sign=-1.0))
    early.close()
    late = configure_logger(0, str(tmp_path), "TRPO")
    assert (tmp_path / "TRPO_2").is_dir()
    restore(late, checkpoint, 40)
    write(late, tensorboard_rows(5, 8))
    late.close()
    assert [each.name for each in tmp_path.iterdir()] == ["TRPO_1"]
    assert late.dir == str(tmp_path / "TRPO_1")
    assert scalars(tmp_path / "TRPO_1")["loss"] == EXPECTED


def test_a_new_folder_with_something_else_in_it_stays(tmp_path: Path) -> None:
    early = configure_logger(0, str(tmp_path), "TRPO")
    write(early, tensorboard_rows(1, 4))
    late = configure_logger(0, str(tmp_path), "TRPO")
    (tmp_path / "TRPO_2" / "notes.txt").write_text("mine")
    restore(late, saved(early), 40)
    write(late, tensorboard_rows(5, 8))
    late.close()
    assert [each.name for each in (tmp_path / "TRPO_2").iterdir()] == ["notes.txt"]
    assert scalars(tmp_path / "TRPO_1")["loss"] == EXPECTED


def test_a_numbered_folder_that_is_gone_is_not_created_again(tmp_path: Path) -> None:
    early = configure_logger(0, str(tmp_path / "there"), "TRPO")
    write(early, tensorboard_rows(1, 4))
    late = configure_logger(0, str(tmp_path / "here"), "TRPO")
    late.close()
    late = configure_logger(0, str(tmp_path / "here"), "TRPO")
    node, arrays = saved(early)
    node["folder"] = "TRPO_9"
    restore(late, (node, arrays), 40)
    write(late, tensorboard_rows(5, 8))
    late.close()
    assert sorted(each.name for each in (tmp_path / "here").iterdir()) == ["TRPO_1", "TRPO_2"]
    assert scalars(tmp_path / "here" / "TRPO_2")["loss"] == EXPECTED[4:]


def test_csv_files_beside_tensorboards_in_a_numbered_folder_continue(tmp_path: Path, loggers: Any) -> None:
    early = loggers(tmp_path / "TRPO_1", ["csv", "tensorboard"])
    write(early, tensorboard_rows(1, 4))
    late = loggers(tmp_path / "TRPO_2", ["csv", "tensorboard"])
    restore(late, saved(early), 40)
    write(late, tensorboard_rows(5, 8))
    assert scalars(tmp_path / "TRPO_1")["loss"] == EXPECTED
    assert len((tmp_path / "TRPO_2" / "progress.csv").read_text().splitlines()) == 9


@pytest.mark.parametrize(
    "folder", ["../outside_1", "/{}/outside_1", "..", ".", "", None, "TRPO_1/../../outside_1", "PPO_1", "TRPO_1\n", "TRPO_x"]
)
def test_a_hostile_or_foreign_folder_is_ignored(tmp_path: Path, folder: str | None) -> None:
    home = tmp_path / "home"
    for name in ("outside_1", "home/PPO_1", "home/TRPO_x"):
        (tmp_path / name).mkdir(parents=True)
    late = configure_logger(0, str(home), "TRPO")
    node, arrays = saved(late)
    node["folder"] = folder and folder.replace("{}", str(tmp_path).strip("/"))
    restore(late, (node, arrays), 40)
    write(late, tensorboard_rows(5, 8))
    late.close()
    assert [*(tmp_path / "outside_1").iterdir(), *(home / "PPO_1").iterdir(), *(home / "TRPO_x").iterdir()] == []
    assert scalars(home / "TRPO_1")["loss"] == EXPECTED[4:]


def test_configured_loggers_continue_in_all_formats_together(tmp_path: Path) -> None:
    formats = ["csv", "json", "log", "tensorboard"]
    whole, early = (configure(str(tmp_path / name), formats) for name in ("whole", "early"))
    write(whole, ROWS)
    write(early, ROWS[:2])
    checkpoint = saved(early)
    write(early, [{"time/step": 30, "loss": -1.0}])
    early.close()
    late = configure(str(tmp_path / "early"), formats)
    restore(late, checkpoint, 20)
    write(late, ROWS[2:])
    for logger in (whole, late):
        logger.close()
    one, other = contents(tmp_path / "whole"), contents(tmp_path / "early")
    assert other == {name: content.replace(b"/whole", b"/early") for name, content in one.items()}
    assert repr(scalars(tmp_path / "early")) == repr(scalars(tmp_path / "whole"))


# --- SB3's Monitor ---


def monitored(path: Path | None, **arguments: Any) -> Monitor:
    env = gym.make("CartPole-v1", max_episode_steps=9)
    return Monitor(env, None if path is None else str(path), **arguments)


def run(env: Monitor, n_episodes: int) -> None:
    for _ in range(n_episodes):
        while not any(env.step(env.action_space.sample())[2:4]):
            pass
        env.reset()


def begun(env: Monitor, seed: int) -> Monitor:
    env.action_space.seed(seed)
    env.reset(seed=seed)
    return env


def through_json(state: EnvState) -> EnvState:
    return EnvState(
        json.loads(json.dumps(state.encoded)), {path: each.copy() for path, each in state.arrays.items()}, state.unsupported
    )


def rows_of(path: Path) -> list[list[str]]:
    header, *rows = path.read_text().splitlines()
    assert json.loads(header[1:])["env_id"] == "CartPole-v1"
    return [row.split(",")[:2] for row in rows]


@pytest.mark.parametrize("override", [True, False])
@pytest.mark.parametrize("same_folder", [True, False])
def test_the_file_of_a_monitor_continues(tmp_path: Path, same_folder: bool, override: bool) -> None:
    whole = begun(monitored(tmp_path / "whole"), seed=1)
    early = begun(monitored(tmp_path / "early"), seed=1)
    run(whole, 7)
    run(early, 3)
    for _ in range(4):
        early.step(early.action_space.sample())
    state = through_json(get_state(early))
    written = (tmp_path / "early.monitor.csv").read_bytes()
    early.reset()
    run(early, 2)
    early.close()
    name = "early" if same_folder else "late"
    late = begun(monitored(tmp_path / name, override_existing=override or not same_folder), seed=2)
    run(late, 1)
    set_state(late, state)
    path = tmp_path / f"{name}.monitor.csv"
    assert path.read_bytes() == written
    run(late, 4)
    assert rows_of(path) == rows_of(tmp_path / "whole.monitor.csv")
    assert len(rows_of(path)) == 8
    assert late.get_episode_rewards() == whole.get_episode_rewards()
    late.close()
    whole.close()


def test_the_file_of_a_monitor_with_more_columns_continues_and_sb3_reads_it(tmp_path: Path) -> None:
    pytest.importorskip("pandas")

    class Tired(gym.Wrapper):
        def step(self, action: Any) -> Any:
            *step, info = self.env.step(action)
            return *step, {**info, "tired": 5}

    def make(name: str) -> Monitor:
        (tmp_path / name).mkdir()
        return Monitor(Tired(gym.make("CartPole-v1")), str(tmp_path / name / "m"), info_keywords=("tired",))

    early, late = begun(make("early"), seed=1), begun(make("late"), seed=2)
    run(early, 2)
    set_state(late, through_json(get_state(early)))
    run(late, 3)
    assert load_results(str(tmp_path / "late"))["tired"].tolist() == [5] * 5


def test_a_monitor_that_no_longer_writes_continues(tmp_path: Path) -> None:
    early, late = begun(monitored(tmp_path / "early"), seed=1), begun(monitored(None), seed=2)
    run(early, 2)
    set_state(late, through_json(get_state(early)))
    assert late.results_writer is None
    assert late.get_episode_lengths() == early.get_episode_lengths()


def test_a_monitor_that_begins_to_write_continues(tmp_path: Path) -> None:
    early, late = begun(monitored(None), seed=1), begun(monitored(tmp_path / "late"), seed=2)
    run(early, 2)
    set_state(late, through_json(get_state(early)))
    assert isinstance(late.results_writer, ResultsWriter)
    run(late, 1)
    assert len(rows_of(tmp_path / "late.monitor.csv")) == 2


def test_a_results_writer_that_is_none_is_refused(tmp_path: Path) -> None:
    early, late = begun(monitored(tmp_path / "early"), seed=1), begun(monitored(tmp_path / "late"), seed=2)
    state = through_json(get_state(early))
    late.results_writer = 3  # type: ignore[assignment]
    with pytest.raises(MismatchError):
        set_state(late, state)
