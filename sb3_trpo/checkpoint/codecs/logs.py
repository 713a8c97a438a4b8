"""
Continuity of logs: what a run has written and what it has yet to write.

A script that is run again opens its log files anew, and most of SB3's formats empty them then. So a checkpoint holds their
contents, and gives them back to the files that the new run has opened, wherever those are. TensorBoard's event files are left
on disk; events beyond the checkpoint are purged by TensorBoard's own means.
"""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import IO, Any, TextIO, cast

import numpy as np
from stable_baselines3.common.logger import (
    CSVOutputFormat,
    HumanOutputFormat,
    JSONOutputFormat,
    Logger,
    TensorBoardOutputFormat,
)
from stable_baselines3.common.monitor import ResultsWriter

from sb3_trpo.checkpoint.codecs.nodes import LIVE, Node
from sb3_trpo.checkpoint.codecs.recording import Recorder, record
from sb3_trpo.checkpoint.codecs.restoring import MAKERS, Restorer

PENDING = ("name_to_value", "name_to_count", "name_to_excluded")
"""Attributes of SB3's logger that hold what the next dump writes."""


def file_content(file: IO[str]) -> np.ndarray:
    """
    Read what has been written to a file that is open for writing.

    :param file: with a place on disk
    :return: its bytes, of shape ``(n,)``
    """
    file.flush()
    return np.frombuffer(Path(file.name).read_bytes(), np.uint8)


def rewrite(file: TextIO, content: np.ndarray) -> None:
    """
    Put other content into a file that is open for writing.

    :param file: the file
    :param content: its new bytes, of shape ``(n,)``
    """
    file.seek(0)
    file.truncate()
    file.buffer.write(content.tobytes())
    file.buffer.flush()


@record.register(ResultsWriter)
def _(value: ResultsWriter, recorder: Recorder, path: str) -> Node:
    """Record the rows that SB3's Monitor has written."""
    return recorder.once(value, path, lambda: {"results": recorder.array(file_content(value.file_handler), path)})


def _make_results(restorer: Restorer, node: Node, live: Any, path: str) -> Any:
    if live is not None:  # the script may have stopped to log episodes
        rewrite(live.file_handler, restorer.arrays[node["results"]])
    return live


MAKERS["results"] = _make_results


def record_logger(logger: Logger, recorder: Recorder, path: str) -> Node:
    """
    Record what a logger has written, and what it is about to write.

    :param logger: of a run
    :param recorder: keeps the arrays
    :param path: where they are kept
    :return: a node
    """
    files = {}
    for index, output in enumerate(logger.output_formats):
        file = _file_of(output)
        if file is not None:
            kind = type(output).__name__
            keys = [*output.keys] if isinstance(output, CSVOutputFormat) else []
            files[f"{index} {kind}"] = {"keys": keys, "content": recorder.array(file_content(file), f"{path}/{index}")}
    shallow = Recorder(descends=False)  # figures and videos are not kept
    kept = [key for key, value in logger.name_to_value.items() if shallow.node(value, f"{path}/{key}") != LIVE]
    pending = {
        name: recorder.node({key: values[key] for key in kept if key in values}, f"{path}/{name}")
        for name, values in ((name, getattr(logger, name)) for name in PENDING)
    }
    folder = logger.dir and Path(logger.dir).name
    return {"pending": pending, "files": files, "folder": folder}


def restore_logger(logger: Logger, node: Node, restorer: Restorer, path: str, n_timesteps: int) -> None:
    """
    Let a logger go on where another one was.

    :param logger: of the run that goes on
    :param node: from :func:`record_logger`
    :param restorer: has the arrays
    :param path: where they are kept
    :param n_timesteps: at the checkpoint; later events are purged
    """
    for index, output in enumerate(logger.output_formats):
        saved, file = node["files"].get(f"{index} {type(output).__name__}"), _file_of(output)
        if saved is not None and file is not None:
            rewrite(cast("TextIO", file), restorer.arrays[saved["content"]])
            if isinstance(output, CSVOutputFormat):
                output.keys = [*saved["keys"]]
        if isinstance(output, TensorBoardOutputFormat):
            _go_on_in(logger, output, node["folder"], n_timesteps)
    for name in PENDING:
        pending = getattr(logger, name)
        pending.clear()
        pending.update(restorer.value(node["pending"][name], None, f"{path}/{name}"))


def _file_of(output: Any) -> IO[str] | None:
    """Give the file that an output format writes, if it is one of its own."""
    if isinstance(output, HumanOutputFormat) and not output.own_file:
        return None
    return output.file if isinstance(output, (HumanOutputFormat, JSONOutputFormat, CSVOutputFormat)) else None


def _go_on_in(logger: Logger, output: TensorBoardOutputFormat, folder: str | None, n_timesteps: int) -> None:
    """Write on into the folder of the earlier run, rather than into one that SB3 has just numbered anew."""
    from torch.utils.tensorboard import SummaryWriter

    new = Path(output.writer.log_dir)
    old = new.parent / folder if folder and _is_numbered_like(folder, new.name) else new
    if not old.is_dir():
        return
    file_writer: Any = output.writer.file_writer
    output.writer.close()
    if old != new:
        with contextlib.suppress(AttributeError, OSError):  # something else is in there, or not even this file is known
            Path(file_writer.event_writer._file_name).unlink()
            new.rmdir()
    output.writer = SummaryWriter(log_dir=str(old), purge_step=n_timesteps + 1)
    logger.dir = str(old)


def _is_numbered_like(folder: str, other: str) -> bool:
    """Tell whether two folders have the same name but for the number at the end."""
    numbered = re.compile(r"([^/\\]+)_(\d+)")
    one, two = numbered.fullmatch(folder), numbered.fullmatch(other)
    return one is not None and two is not None and one[1] == two[1]
