"""Arrays, tensors, and the modules and optimizers that consist of them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch as th

from sb3_trpo.checkpoint.codecs.codec import Codec, Decoder, Encoded, Encoder, MismatchError
from sb3_trpo.checkpoint.codecs.inspection import owner_of

NUMBERS = frozenset(
    ("bool", *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)), "float16", "float32", "float64")
)
"""Dtypes that NumPy and safetensors both have."""
BRAIN_FLOAT = "bfloat16"
"""The one dtype of policies that NumPy lacks; its bits are stored as int16."""
LARGEST_RATIO, SMALL = 4, 2**12
"""A view's owner is stored if it has at most this many times the view's bytes, or at most this many bytes."""


def store(array: np.ndarray, path: str, encoder: Encoder) -> Encoded:
    """
    Keep a copy of an array, with its layout in memory if that is unusual.

    The layout matters for exact resume: a convolution of a transposed image rounds differently.

    :param array: the array
    :param path: path to keep it under
    :param encoder: keeps it
    :return: the path, or ``[path, strides]`` if the strides (in bytes) are not those of a new array
    """
    encoder.arrays[path] = np.array(array, order="C")
    usual = array.itemsize * np.cumprod([1, *array.shape[:0:-1]])[::-1]
    is_usual = array.strides == (*usual[: array.ndim],) or not _fits(array, array.strides)
    return path if is_usual else [path, [*array.strides]]


def load(reference: Encoded, decoder: Decoder) -> np.ndarray:
    """
    Return a copy of a stored array, with its original layout in memory.

    :param reference: what :func:`store` returned
    :param decoder: holds the arrays
    :return: a new array
    :raises ValueError: if the strides would reach beyond the array's memory
    """
    if isinstance(reference, str):
        return decoder.arrays[reference].copy()
    path, strides = reference
    saved = decoder.arrays[path]
    if not _fits(saved, strides):
        raise ValueError(f"an array of shape {saved.shape} cannot have the strides {strides}")
    # The strides may be forged: as_strided() does not check them, _fits() has.
    made = np.lib.stride_tricks.as_strided(np.empty(saved.size, saved.dtype), saved.shape, strides)
    made[...] = saved
    return made


def _fits(array: np.ndarray, strides: Iterable[int]) -> bool:
    """Check whether all elements lie within the array's own number of bytes if they have the given strides."""
    steps = [*strides]
    reach = sum(stride * (length - 1) for stride, length in zip(steps, array.shape, strict=True))
    return array.size > 0 and all(stride >= 0 for stride in steps) and reach + array.itemsize <= array.nbytes


class ArrayCodec(Codec):
    """
    NumPy arrays of numbers or texts.

    A view is stored as a view of its owner, so that both still share memory after a restart.
    """

    types = (np.ndarray,)
    kinds = ("array", "view", "text_array")

    def encode(self, value: np.ndarray, path: str, encoder: Encoder) -> Encoded:
        """Encode an array, once."""
        if type(value) is not np.ndarray or (value.dtype.name not in NUMBERS and value.dtype.kind not in "SU"):
            return encoder.reject(value, path)
        return encoder.once(value, path, lambda: self._encode_new(value, path, encoder))

    def _encode_new(self, value: np.ndarray, path: str, encoder: Encoder) -> Encoded:
        if value.dtype.kind in "SU":
            texts = np.array(value.ravel(), order="C").view(np.uint8)
            return {"text_array": store(texts, path, encoder), "dtype": value.dtype.str, "shape": [*value.shape]}
        owner = owner_of(value)
        is_foreign = owner.base is not None or owner.dtype.name not in NUMBERS or type(owner) is not np.ndarray
        is_too_large = owner.nbytes > max(LARGEST_RATIO * value.nbytes, SMALL)
        if owner is value or is_foreign or is_too_large or not owner.flags.c_contiguous:
            return {"array": store(value, path, encoder)}
        offset = value.ctypes.data - owner.ctypes.data
        layout = {"dtype": value.dtype.name, "shape": [*value.shape], "strides": [*value.strides], "offset": offset}
        return {"view": encoder.encode(owner, f"{path}/owner"), **layout}

    def decode(self, encoded: Encoded, live: Any, path: str, decoder: Decoder) -> np.ndarray:
        """Make an array, or fill the live one if that is a window on a simulator's memory."""
        if "view" in encoded:
            owner = decoder.decode(encoded["view"], None, f"{path}/owner")
            if encoded["dtype"] not in NUMBERS or not isinstance(owner, np.ndarray):
                raise MismatchError(f"{path} is no view of numbers")
            # NumPy checks that the view lies within the owner.
            return np.ndarray(encoded["shape"], encoded["dtype"], owner, encoded["offset"], encoded["strides"])
        if "text_array" in encoded:
            return _decode_texts(encoded, path, decoder)
        return _fill_window(load(encoded["array"], decoder), live, path)


def _decode_texts(encoded: Encoded, path: str, decoder: Decoder) -> np.ndarray:
    dtype = np.dtype(encoded["dtype"])
    if dtype.kind not in "SU" or min(encoded["shape"], default=0) < 0:
        raise MismatchError(f"{path} is no array of texts")
    texts: np.ndarray = load(encoded["text_array"], decoder).view(dtype)
    return texts.reshape(encoded["shape"])


def _fill_window(saved: np.ndarray, live: Any, path: str) -> np.ndarray:
    """Write into an array on a simulator's memory, since the simulator would not notice a new one; replace any other."""
    if not isinstance(live, np.ndarray) or owner_of(live).base is None or not live.flags.writeable:
        return saved
    if live.shape != saved.shape or live.dtype != saved.dtype:
        raise MismatchError(f"{path} has shape {live.shape}, but had {saved.shape}")
    live[...] = saved
    return live


class NumpyScalarCodec(Codec):
    """NumPy's scalars, which keep their dtype."""

    types = (np.generic,)
    kinds = ("scalar",)

    def encode(self, value: np.generic, path: str, encoder: Encoder) -> Encoded:
        """Encode a scalar as an array of no dimensions."""
        is_number = value.dtype.name in NUMBERS
        return {"scalar": store(np.asarray(value), path, encoder)} if is_number else encoder.reject(value, path)

    def decode(self, encoded: Encoded, live: Any, path: str, decoder: Decoder) -> Any:
        """Return the scalar in the array."""
        return decoder.arrays[encoded["scalar"]][()]


class TensorCodec(Codec):
    """Dense tensors of torch."""

    types = (th.Tensor,)
    kinds = ("tensor",)

    def encode(self, value: th.Tensor, path: str, encoder: Encoder) -> Encoded:
        """Encode a tensor as an array on the CPU."""
        dtype = str(value.dtype).removeprefix("torch.")
        if value.layout is not th.strided or dtype not in {*NUMBERS, BRAIN_FLOAT}:
            return encoder.reject(value, path)

        def encode_new() -> Encoded:
            data = value.detach().cpu()
            bits = data.view(th.int16) if dtype == BRAIN_FLOAT else data
            return {"tensor": store(bits.numpy(), path, encoder), "dtype": dtype}

        return encoder.once(value, path, encode_new)

    def decode(self, encoded: Encoded, live: Any, path: str, decoder: Decoder) -> th.Tensor:
        """Make a tensor on the device of the live one."""
        data = th.from_numpy(load(encoded["tensor"], decoder))
        if encoded["dtype"] == BRAIN_FLOAT:
            data = data.view(th.bfloat16)
        return data.to(live.device) if isinstance(live, th.Tensor) else data


class StateDictCodec(Codec):
    """Torch's modules and optimizers, by their ``state_dict()``."""

    types = (th.nn.Module, th.optim.Optimizer)
    kinds = ("module", "optimizer")

    def encode(self, value: th.nn.Module | th.optim.Optimizer, path: str, encoder: Encoder) -> Encoded:
        """Encode the state dict."""
        kind = "module" if isinstance(value, th.nn.Module) else "optimizer"
        return encoder.once(value, path, lambda: {kind: encoder.encode(dict(value.state_dict()), path)})

    def decode(self, encoded: Encoded, live: Any, path: str, decoder: Decoder) -> Any:
        """Load the state dict into the live module or optimizer; anything else has no ``load_state_dict``, and fails."""
        (state,) = encoded.values()
        live.load_state_dict(decoder.decode(state, None, path))
        return live
