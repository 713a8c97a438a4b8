"""
MuJoCo's simulations, and the numbers in their models.

MuJoCo's integration state determines the next step. Derived quantities are kept too, except contacts: tasks read some (such as
positions of bodies) before they step, when these are still those of the step before. Models are kept for tasks that change
masses, gains or gravity during training. Only floating-point numbers are ever written, so that no checkpoint can move an index
out of bounds.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from sb3_trpo.checkpoint.codecs.arrays import load, store
from sb3_trpo.checkpoint.codecs.codec import Codec, Decoder, Encoded, Encoder, MismatchError
from sb3_trpo.checkpoint.codecs.inspection import qualified_name

CONSTRAINT_ARRAYS = ("efc_", "iefc_", "iacc", "ifrc_", "island_")
"""Prefixes of arrays that have a row per contact; each step computes them before it reads them."""
SHAPE_ARRAYS = ("mesh_", "hfield_", "tex_", "skin_", "flex", "bvh_", "oct_")
"""Prefixes of large arrays of a model that describe shapes and do not change."""


def float_arrays(struct: Any, skip: tuple[str, ...] = ()) -> Iterator[np.ndarray]:
    """
    Iterate over the floating-point arrays of one of MuJoCo's structs.

    :param struct: ``MjData``, ``MjModel`` or ``MjOption``
    :param skip: prefixes of the names to leave out
    :return: views of its memory, in the order of their names
    """
    for name in sorted(vars(type(struct))):
        if not name.startswith(("_", *skip)):
            value = getattr(struct, name, None)
            if isinstance(value, np.ndarray) and value.dtype.kind == "f" and value.size:
                yield value


def float_options(options: Any) -> list[str]:
    """
    List the single numbers among a simulation's options, such as its time step.

    :param options: ``MjOption``
    :return: their names
    """
    return [name for name in sorted(vars(type(options))) if isinstance(getattr(options, name, None), float)]


def _concatenate(arrays: Iterator[np.ndarray]) -> np.ndarray:
    return np.concatenate([array.ravel() for array in arrays], dtype=np.float64)


def _write(arrays: Iterator[np.ndarray], values: np.ndarray, path: str) -> None:
    """Write concatenated numbers into MuJoCo's memory."""
    targets = [*arrays]
    n_numbers = sum(target.size for target in targets)
    if n_numbers != len(values):
        raise MismatchError(f"{path} has {n_numbers} numbers, but had {len(values)}")
    start = 0
    for target in targets:
        target[...] = values[start : start + target.size].reshape(target.shape)
        start += target.size


class MuJoCoCodec(Codec):
    """MuJoCo's ``MjData`` and ``MjModel``."""

    kinds = ("mujoco_data", "mujoco_model")
    data_class, model_class = "mujoco._structs.MjData", "mujoco._structs.MjModel"

    def handles(self, cls: type) -> bool:
        """Compare names, since MuJoCo may not be installed."""
        return qualified_name(cls) in (self.data_class, self.model_class)

    def encode(self, value: Any, path: str, encoder: Encoder) -> Encoded:
        """Encode a simulation or a model, once."""
        encode = _encode_data if qualified_name(type(value)) == self.data_class else _encode_model
        return encoder.once(value, path, lambda: encode(value, path, encoder))

    def decode(self, encoded: Encoded, live: Any, path: str, decoder: Decoder) -> Any:
        """Write numbers into the live simulation or model."""
        decode = _decode_data if "mujoco_data" in encoded else _decode_model
        decode(encoded, live, path, decoder)
        return live


def _integration_state(model: Any) -> tuple[int, np.ndarray]:
    """Return MuJoCo's number for the state that determines the next step, and memory for that state."""
    import mujoco

    kind = int(mujoco.mjtState.mjSTATE_INTEGRATION)
    return kind, np.empty(mujoco.mj_stateSize(model, kind))


def _encode_data(data: Any, path: str, encoder: Encoder) -> Encoded:
    import mujoco

    kind, state = _integration_state(data.model)
    mujoco.mj_getState(data.model, data, state, kind)
    derived = _concatenate(float_arrays(data, skip=CONSTRAINT_ARRAYS))
    return {"mujoco_data": store(state, path, encoder), "derived": store(derived, f"{path}/derived", encoder)}


def _decode_data(encoded: Encoded, live: Any, path: str, decoder: Decoder) -> None:
    import mujoco

    kind, state = _integration_state(live.model)
    saved = load(encoded["mujoco_data"], decoder)
    if saved.shape != state.shape or saved.dtype != state.dtype:
        raise MismatchError(f"{path} has a state of {len(state)} numbers, but had one of {saved.shape}")
    mujoco.mj_setState(live.model, live, saved, kind)
    mujoco.mj_forward(live.model, live)  # finds the contacts
    _write(float_arrays(live, skip=CONSTRAINT_ARRAYS), decoder.arrays[encoded["derived"]], path)


def _encode_model(model: Any, path: str, encoder: Encoder) -> Encoded:
    options = store(_concatenate(float_arrays(model.opt)), f"{path}/options", encoder)
    numbers = store(_concatenate(float_arrays(model, skip=SHAPE_ARRAYS)), path, encoder)
    scalars = [getattr(model.opt, name) for name in float_options(model.opt)]
    return {"mujoco_model": numbers, "options": options, "scalars": scalars}


def _decode_model(encoded: Encoded, live: Any, path: str, decoder: Decoder) -> None:
    _write(float_arrays(live, skip=SHAPE_ARRAYS), decoder.arrays[encoded["mujoco_model"]], path)
    _write(float_arrays(live.opt), decoder.arrays[encoded["options"]], path)
    for name, value in zip(float_options(live.opt), encoded["scalars"], strict=True):
        setattr(live.opt, name, float(value))
