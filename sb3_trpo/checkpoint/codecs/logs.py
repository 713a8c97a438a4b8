"""
Logs: what a run has written, and what it is about to write.

A script that is run again opens its log files again, and most of SB3's formats empty them. So a checkpoint holds the content
of the files, which is written into those that the new run has opened, wherever they are. TensorBoard's event files stay on
disk; TensorBoard can itself discard events that come after the checkpoint.
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

from sb3_trpo.checkpoint.codecs.arrays import store
from sb3_trpo.checkpoint.codecs.codec import LIVE, Codec, Decoder, Encoded, Encoder

PENDING = ("name_to_value", "name_to_count", "name_to_excluded")
"""Attributes of SB3's logger that hold what the next dump writes."""


def read_content(file: IO[str]) -> np.ndarray:
    """
    Read what has been written to a file that is open for writing.

    :param file: a file on disk
    :return: its bytes, shape ``(n,)``
    """
    file.flush()
    return np.frombuffer(Path(file.name).read_bytes(), np.uint8)


def replace_content(file: TextIO, content: np.ndarray) -> None:
    """
    Replace the content of a file that is open for writing.

    :param file: the file
    :param content: its new bytes, shape ``(n,)``
    """
    file.seek(0)
    file.truncate()
    file.buffer.write(content.tobytes())
    file.buffer.flush()


class MonitorFileCodec(Codec):
    """The file to which SB3's ``Monitor`` writes a row for each episode."""

    types = (ResultsWriter,)
    kinds = ("results",)

    def encode(self, value: ResultsWriter, path: str, encoder: Encoder) -> Encoded:
        """Encode the content of the file."""
        return encoder.once(value, path, lambda: {"results": store(read_content(value.file_handler), path, encoder)})

    def decode(self, encoded: Encoded, live: Any, path: str, decoder: Decoder) -> Any:
        """Replace the content of the live file, unless the script no longer logs episodes."""
        if live is not None:
            replace_content(live.file_handler, decoder.arrays[encoded["results"]])
        return live


def encode_logger(logger: Logger, path: str, encoder: Encoder) -> Encoded:
    """
    Encode what a logger has written to its files, and what it is about to write.

    :param logger: logger of the run
    :param path: path to keep arrays under
    :param encoder: stores the arrays
    :return: JSON
    """
    files = {}
    for index, output in enumerate(logger.output_formats):
        file = _file_of(output)
        if file is not None:
            keys = [*output.keys] if isinstance(output, CSVOutputFormat) else []
            content = store(read_content(file), f"{path}/{index}", encoder)
            files[f"{index} {type(output).__name__}"] = {"keys": keys, "content": content}
    shallow = encoder.empty(deep=False)  # figures and videos are not kept
    kept = [key for key, value in logger.name_to_value.items() if shallow.encode(value, f"{path}/{key}") != LIVE]
    pending = {
        name: encoder.encode({key: values[key] for key in kept if key in values}, f"{path}/{name}")
        for name, values in ((name, getattr(logger, name)) for name in PENDING)
    }
    folder = logger.dir and Path(logger.dir).name
    return {"pending": pending, "files": files, "folder": folder}


def decode_logger(encoded: Encoded, logger: Logger, path: str, decoder: Decoder, n_timesteps: int) -> None:
    """
    Restore a logger.

    :param encoded: from :func:`encode_logger`
    :param logger: logger of the run that continues
    :param path: path under which arrays are kept
    :param decoder: holds the arrays
    :param n_timesteps: timesteps of the run at the checkpoint; TensorBoard is asked to discard later events
    """
    for index, output in enumerate(logger.output_formats):
        saved, file = encoded["files"].get(f"{index} {type(output).__name__}"), _file_of(output)
        if saved is not None and file is not None:
            replace_content(cast("TextIO", file), decoder.arrays[saved["content"]])
            if isinstance(output, CSVOutputFormat):
                output.keys = [*saved["keys"]]
        if isinstance(output, TensorBoardOutputFormat):
            _continue_tensorboard(logger, output, encoded["folder"], n_timesteps)
    for name in PENDING:
        pending = getattr(logger, name)
        pending.clear()
        pending.update(decoder.decode(encoded["pending"][name], None, f"{path}/{name}"))


def _file_of(output: Any) -> IO[str] | None:
    """Return the file that an output format has opened; ``None`` if it writes to the screen or elsewhere."""
    if isinstance(output, HumanOutputFormat) and not output.own_file:
        return None
    return output.file if isinstance(output, (HumanOutputFormat, JSONOutputFormat, CSVOutputFormat)) else None


def _continue_tensorboard(logger: Logger, output: TensorBoardOutputFormat, folder: str | None, n_timesteps: int) -> None:
    """Write into the folder of the earlier run, rather than into the one that SB3 has just given the next number."""
    from torch.utils.tensorboard import SummaryWriter

    new = Path(output.writer.log_dir)
    old = new.parent / folder if folder and _differ_in_number(folder, new.name) else new
    if not old.is_dir():
        return
    file_writer: Any = output.writer.file_writer
    output.writer.close()
    if old != new:
        with contextlib.suppress(AttributeError, OSError):  # there is something else in it, or not even this file
            Path(file_writer.event_writer._file_name).unlink()
            new.rmdir()
    output.writer = SummaryWriter(log_dir=str(old), purge_step=n_timesteps + 1)
    logger.dir = str(old)


def _differ_in_number(folder: str, other: str) -> bool:
    """Check whether two names are the same but for the number at the end; a checkpoint chooses no other folder."""
    numbered = re.compile(r"([^/\\]+)_(\d+)")
    one, two = numbered.fullmatch(folder), numbered.fullmatch(other)
    return one is not None and two is not None and one[1] == two[1]
