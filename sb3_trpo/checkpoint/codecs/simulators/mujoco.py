"""
The state of MuJoCo's simulations, and the numbers of their models.

MuJoCo's integration state determines the next step. What is derived from it, but for contacts, is kept too, since tasks read
derived quantities (positions of bodies) before they step, which are those of the step before. Models are kept for tasks that
change masses, gains or gravity as they go. Only floating-point numbers are ever written: no checkpoint can move an index out
of bounds.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from sb3_trpo.checkpoint.codecs.nodes import Node
from sb3_trpo.checkpoint.codecs.recording import SIMULATORS, Recorder
from sb3_trpo.checkpoint.codecs.restoring import MAKERS, MismatchError, Restorer

ARENA = ("efc_", "iefc_", "iacc", "ifrc_", "island_")
"""Arrays of constraints, whose sizes change with the contacts: each step makes them anew before it reads them."""
SHAPES = ("mesh_", "hfield_", "tex_", "skin_", "flex", "bvh_", "oct_")
"""Large parts of a model that describe shapes and do not change."""


def numbers_of(struct: Any, but: tuple[str, ...] = ()) -> Iterator[np.ndarray]:
    """
    Go through the floating-point arrays of one of MuJoCo's structs.

    :param struct: ``MjData``, ``MjModel`` or ``MjOption``
    :param but: beginnings of names to leave out
    :return: windows into its memory, in the order of their names
    """
    for name in sorted(vars(type(struct))):
        if not name.startswith(("_", *but)):
            value = getattr(struct, name, None)
            if isinstance(value, np.ndarray) and value.dtype.kind == "f" and value.size:
                yield value


def scalars_of(options: Any) -> list[str]:
    """
    Name the single numbers among a simulation's options, such as its time step.

    :param options: ``MjOption``
    :return: their names
    """
    return [name for name in sorted(vars(type(options))) if isinstance(getattr(options, name, None), float)]


def _joined(arrays: Iterator[np.ndarray]) -> np.ndarray:
    return np.concatenate([array.ravel() for array in arrays], dtype=np.float64)


def _write(arrays: Iterator[np.ndarray], values: np.ndarray, path: str) -> None:
    """Write numbers, joined as they were read, into MuJoCo's memory."""
    targets = [*arrays]
    if sum(target.size for target in targets) != len(values):
        raise MismatchError(f"{path} has {sum(target.size for target in targets)} numbers, but had {len(values)}")
    start = 0
    for target in targets:
        target[...] = values[start : start + target.size].reshape(target.shape)
        start += target.size


def _integration_state(model: Any) -> tuple[int, np.ndarray]:
    """Name what determines the next step, and make room for it."""
    import mujoco

    kind = int(mujoco.mjtState.mjSTATE_INTEGRATION)
    return kind, np.empty(mujoco.mj_stateSize(model, kind))


def _record_data(data: Any, recorder: Recorder, path: str) -> Node:
    import mujoco

    kind, state = _integration_state(data.model)
    mujoco.mj_getState(data.model, data, state, kind)
    derived = _joined(numbers_of(data, but=ARENA))
    return {"mujoco_data": recorder.array(state, path), "derived": recorder.array(derived, f"{path}/derived")}


def _make_data(restorer: Restorer, node: Node, live: Any, path: str) -> Any:
    import mujoco

    kind, state = _integration_state(live.model)
    saved = restorer.array(node["mujoco_data"])
    if saved.shape != state.shape or saved.dtype != state.dtype:
        raise MismatchError(f"{path} has a state of {len(state)} numbers, but had one of {saved.shape}")
    mujoco.mj_setState(live.model, live, saved, kind)
    mujoco.mj_forward(live.model, live)  # contacts
    _write(numbers_of(live, but=ARENA), restorer.arrays[node["derived"]], path)
    return live


def _record_model(model: Any, recorder: Recorder, path: str) -> Node:
    options = recorder.array(_joined(numbers_of(model.opt)), f"{path}/options")
    numbers = recorder.array(_joined(numbers_of(model, but=SHAPES)), path)
    return {
        "mujoco_model": numbers,
        "options": options,
        "scalars": [getattr(model.opt, name) for name in scalars_of(model.opt)],
    }


def _make_model(restorer: Restorer, node: Node, live: Any, path: str) -> Any:
    _write(numbers_of(live, but=SHAPES), restorer.arrays[node["mujoco_model"]], path)
    _write(numbers_of(live.opt), restorer.arrays[node["options"]], path)
    for name, value in zip(scalars_of(live.opt), node["scalars"], strict=True):
        setattr(live.opt, name, float(value))
    return live


SIMULATORS["mujoco._structs.MjData"] = _record_data
SIMULATORS["mujoco._structs.MjModel"] = _record_model
MAKERS["mujoco_data"] = _make_data
MAKERS["mujoco_model"] = _make_model
