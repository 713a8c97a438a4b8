"""Arrays and tensors, and what is made of them: how they are recorded and made again."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch as th

from sb3_trpo.checkpoint.codecs.nodes import BRAIN_FLOAT, NUMBERS, Node, owner_of
from sb3_trpo.checkpoint.codecs.recording import Recorder, record
from sb3_trpo.checkpoint.codecs.restoring import MAKERS, MismatchError, Restorer

VIEWED_AT_MOST = 4
"""How many times as large as a view an array may be that is recorded for the view's sake."""


@record.register(np.ndarray)
def _(value: np.ndarray, recorder: Recorder, path: str) -> Node:
    if type(value) is not np.ndarray or (value.dtype.name not in NUMBERS and value.dtype.kind not in "SU"):
        return recorder.reject(value, path)
    return recorder.once(value, path, lambda: _record_array(value, recorder, path))


def _record_array(value: np.ndarray, recorder: Recorder, path: str) -> Node:
    """Record an array; a view with what it is a view of, as long as that is not much larger."""
    if value.dtype.kind in "SU":
        texts = np.array(value.ravel(), order="C").view(np.uint8)
        return {"text_array": recorder.array(texts, path), "dtype": value.dtype.str, "shape": [*value.shape]}
    owner = owner_of(value)
    is_window = owner is value or owner.base is not None or owner.dtype.name not in NUMBERS or type(owner) is not np.ndarray
    if is_window or not owner.flags.c_contiguous or owner.nbytes > max(VIEWED_AT_MOST * value.nbytes, 2**12):
        return {"array": recorder.array(value, path)}
    offset = value.ctypes.data - owner.ctypes.data
    layout = {"dtype": value.dtype.name, "shape": [*value.shape], "strides": [*value.strides], "offset": offset}
    return {"view": recorder.node(owner, f"{path}/owner"), **layout}


@record.register(np.generic)
def _(value: np.generic, recorder: Recorder, path: str) -> Node:
    is_number = value.dtype.name in NUMBERS
    return {"scalar": recorder.array(np.asarray(value), path)} if is_number else recorder.reject(value, path)


@record.register(th.Tensor)
def _(value: th.Tensor, recorder: Recorder, path: str) -> Node:
    dtype = str(value.dtype).removeprefix("torch.")
    if value.layout is not th.strided or dtype not in {*NUMBERS, BRAIN_FLOAT}:
        return recorder.reject(value, path)

    def make() -> Node:
        data = value.detach().cpu()
        bits = data.view(th.int16) if dtype == BRAIN_FLOAT else data
        return {"tensor": recorder.array(bits.numpy(), path), "dtype": dtype}

    return recorder.once(value, path, make)


@record.register(th.nn.Module)
def _(value: th.nn.Module, recorder: Recorder, path: str) -> Node:
    return recorder.once(value, path, lambda: {"module": recorder.node(dict(value.state_dict()), path)})


@record.register(th.optim.Optimizer)
def _(value: th.optim.Optimizer, recorder: Recorder, path: str) -> Node:
    return recorder.once(value, path, lambda: {"optimizer": recorder.node(value.state_dict(), path)})


def _in_place(saved: np.ndarray, live: Any, path: str) -> np.ndarray:
    """Write into a window on a simulator's memory; anything else is replaced."""
    if not isinstance(live, np.ndarray) or owner_of(live).base is None or not live.flags.writeable:
        return saved
    if live.shape != saved.shape or live.dtype != saved.dtype:
        raise MismatchError(f"{path} has shape {live.shape}, but had {saved.shape}")
    live[...] = saved
    return live


def _make_array(restorer: Restorer, node: Node, live: Any, path: str) -> np.ndarray:
    return _in_place(restorer.array(node["array"]), live, path)


def _make_view(restorer: Restorer, node: Node, live: Any, path: str) -> np.ndarray:
    owner = restorer.value(node["view"], None, f"{path}/owner")
    if node["dtype"] not in NUMBERS or not isinstance(owner, np.ndarray):
        raise MismatchError(f"{path} is no view of numbers")
    return np.ndarray(node["shape"], node["dtype"], owner, node["offset"], node["strides"])  # which checks the bounds


def _make_text_array(restorer: Restorer, node: Node, live: Any, path: str) -> np.ndarray:
    dtype = np.dtype(node["dtype"])
    if dtype.kind not in "SU" or min(node["shape"], default=0) < 0:
        raise MismatchError(f"{path} is no array of texts")
    texts: np.ndarray = restorer.array(node["text_array"]).view(dtype)
    return texts.reshape(node["shape"])


def _make_scalar(restorer: Restorer, node: Node, live: Any, path: str) -> Any:
    return restorer.arrays[node["scalar"]][()]


def _make_tensor(restorer: Restorer, node: Node, live: Any, path: str) -> th.Tensor:
    data = th.from_numpy(restorer.array(node["tensor"]))
    if node["dtype"] == BRAIN_FLOAT:
        data = data.view(th.bfloat16)
    return data.to(live.device) if isinstance(live, th.Tensor) else data


def _make_module(restorer: Restorer, node: Node, live: Any, path: str) -> th.nn.Module:
    live.load_state_dict(restorer.value(node["module"], None, path))
    return live  # type: ignore[no-any-return]  # what else would have load_state_dict fails there


def _make_optimizer(restorer: Restorer, node: Node, live: Any, path: str) -> th.optim.Optimizer:
    live.load_state_dict(restorer.value(node["optimizer"], None, path))
    return live  # type: ignore[no-any-return]  # as above


MAKERS |= {
    "array": _make_array,
    "view": _make_view,
    "text_array": _make_text_array,
    "scalar": _make_scalar,
    "tensor": _make_tensor,
    "module": _make_module,
    "optimizer": _make_optimizer,
}
