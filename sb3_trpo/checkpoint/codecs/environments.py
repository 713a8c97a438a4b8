"""
Environments with all their wrappers, and vectorized ones in this process or in workers.

The state of an environment is the plain data among its attributes, its generators, and the state of its simulator. Where an
environment or a wrapper has the methods ``get_state()`` and ``set_state(state)``, these are used for its part.
"""

from __future__ import annotations

import hashlib
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecEnvWrapper

from sb3_trpo.checkpoint.codecs.codec import LIVE, Codec, Decoder, Encoded, Encoder, MismatchError
from sb3_trpo.checkpoint.codecs.file_paths import FilePaths
from sb3_trpo.checkpoint.codecs.generators import decode_global_generators, encode_global_generators
from sb3_trpo.checkpoint.codecs.inspection import has_own_state, qualified_name
from sb3_trpo.checkpoint.worker_rpc import CANNOT_BE_CALLED, call

DESCRIPTION = frozenset(("class_attributes", "num_envs", "render_mode", "metadata", "remotes", "work_remotes", "processes"))
"""Attributes of a vectorized environment that describe it, or connect it with its workers."""
SET_BY_EACH_STEP = frozenset(("envs", "actions", "buf_obs", "buf_dones", "buf_rews", "buf_infos", "keys", "waiting", "closed"))
"""Attributes of ``DummyVecEnv`` and ``SubprocVecEnv`` that each step sets again, or that never change."""


class EnvState(NamedTuple):
    """
    The state of one environment, as it is sent from and to a worker.

    :param encoded: JSON
    :param arrays: arrays by path
    :param unsupported: class names of what cannot be encoded, by path; if there are any, the environment cannot be restored
    :param file_paths: the environment's file paths, as far as they are known
    """

    encoded: Encoded
    arrays: dict[str, np.ndarray]
    unsupported: dict[str, str]
    file_paths: FilePaths | None = None


def encode_env(env: gym.Env[Any, Any], encoder: Encoder) -> EnvState:
    """
    Encode an environment and everything that it wraps.

    :param env: the outermost wrapper, or the environment itself
    :param encoder: an empty encoder
    :return: its state
    """
    try:
        return EnvState(encoder.encode(env, "env"), encoder.arrays, encoder.unsupported, encoder.file_paths)
    except RecursionError:
        return EnvState(LIVE, {}, {"env": "chain of objects that is too long"}, encoder.file_paths)


def decode_env(env: gym.Env[Any, Any], encoded: Encoded, decoder: Decoder) -> None:
    """
    Restore an environment.

    :param env: an environment that was made like the one that was encoded
    :param encoded: JSON from :func:`encode_env`
    :param decoder: holds the arrays
    :raises MismatchError: if the environment is not made of the same parts
    """
    decoder.decode(encoded, env, "env")


def encode_worker(env: gym.Env[Any, Any], encoder: Encoder) -> EnvState:
    """
    Encode an environment and the global generators of its worker process.

    :param env: the worker's environment
    :param encoder: an empty encoder
    :return: the state of both
    """
    process = encoder.empty()
    state = encode_env(env, encoder)
    process.merge(state.arrays, state.unsupported)
    encoded = {"env": state.encoded, **encode_global_generators(process, with_cuda=False)}
    return EnvState(encoded, process.arrays, process.unsupported, state.file_paths)


def decode_worker(env: gym.Env[Any, Any], encoded: Encoded, decoder: Decoder) -> None:
    """
    Restore an environment and the global generators of its process.

    :param env: the worker's environment
    :param encoded: JSON from :func:`encode_worker`
    :param decoder: holds the arrays
    :raises MismatchError: if the environment is not made of the same parts
    """
    decode_global_generators({name: each for name, each in encoded.items() if name not in ("env", "cuda")}, decoder)
    decode_env(env, encoded["env"], decoder)


class VecEnvCodec(Codec):
    """Vectorized environments and their wrappers."""

    types = (VecEnv,)
    kinds = ("vec_env",)

    def encode(self, value: VecEnv, path: str, encoder: Encoder) -> Encoded:
        """Encode a vectorized environment, once."""
        return encoder.once(value, path, lambda: self._encode_new(value, path, encoder))

    def _encode_new(self, vec_env: VecEnv, path: str, encoder: Encoder) -> Encoded:
        encoded: Encoded = {"vec_env": qualified_name(type(vec_env))}
        if isinstance(vec_env, (DummyVecEnv, SubprocVecEnv)):
            parts = encoder.file_paths.split(path, vec_env.num_envs)
            envs = [_encode_one(vec_env, index, f"{path}/{index}", encoder, part) for index, part in enumerate(parts)]
            state = encoder.encode_attributes(vec_env, path, skip=DESCRIPTION | SET_BY_EACH_STEP)
            return encoded | {"state": state, "envs": envs}
        if has_own_state(vec_env):
            inner = {"venv": encoder.encode(vec_env.venv, f"{path}/venv")} if isinstance(vec_env, VecEnvWrapper) else {}
            own = encoder.encode(vec_env.get_state(), f"{path}/own")  # type: ignore[attr-defined]  # it has just been found
            return encoded | {"state": inner, "own": own}
        return encoded | {"state": encoder.encode_attributes(vec_env, path, skip=DESCRIPTION)}

    def decode(self, encoded: Encoded, live: Any, path: str, decoder: Decoder) -> VecEnv:
        """Restore a vectorized environment; if one of its environments does not fit, that is recorded, and the others are."""
        fits = isinstance(live, VecEnv) and qualified_name(type(live)) == encoded["vec_env"]
        if not fits or ("own" in encoded and not has_own_state(live)):
            raise MismatchError(f"{path} was a {encoded['vec_env']}, but is a {qualified_name(type(live))}")
        if "envs" in encoded and len(encoded["envs"]) != live.num_envs:
            raise MismatchError(f"{path} had {len(encoded['envs'])} environments, but has {live.num_envs}")
        decoder.decode_attributes(live, encoded["state"], path, skip=DESCRIPTION | SET_BY_EACH_STEP)
        if "own" in encoded:
            live.set_state(decoder.decode(encoded["own"], None, f"{path}/own"))
        for index, env in enumerate(encoded.get("envs", ())):
            try:
                if env is not None:
                    _decode_one(live, index, env, f"{path}/{index}/", decoder)
            except MismatchError as error:
                decoder.failures.append(f"{path}/{index}: {error}")
        return live  # type: ignore[no-any-return]  # its class has been compared


def _encode_one(vec_env: VecEnv, index: int, path: str, encoder: Encoder, file_paths: FilePaths) -> Encoded:
    """Encode one environment, in its worker if it has one; the encoder travels there and back."""
    encode = encode_worker if isinstance(vec_env, SubprocVecEnv) else encode_env
    state = call(vec_env, index, encode, encoder.empty(file_paths=file_paths))
    if state == CANNOT_BE_CALLED:
        encoder.unsupported[path] = CANNOT_BE_CALLED
        return None
    encoder.merge(state.arrays, state.unsupported, prefix=f"{path}/")
    encoder.file_paths.merge(state.file_paths, prefix=f"{path}/")
    return state.encoded


def _decode_one(vec_env: VecEnv, index: int, encoded: Encoded, prefix: str, decoder: Decoder) -> None:
    decode = decode_worker if isinstance(vec_env, SubprocVecEnv) else decode_env
    arrays = {path.removeprefix(prefix): array for path, array in decoder.arrays.items() if path.startswith(prefix)}
    call(vec_env, index, decode, encoded, Decoder(decoder.codecs, arrays))


def describe_env(env: gym.Env[Any, Any]) -> list[str]:
    """
    Describe an environment and its wrappers, with the arguments that Gymnasium has recorded.

    :param env: the outermost wrapper, or the environment itself
    :return: one text for each layer, outermost first
    """
    layers = []
    while True:
        arguments = dict(getattr(env, "_saved_kwargs", {}))
        if not isinstance(env, gym.Wrapper) and env.spec is not None:
            arguments |= {"id": env.spec.id, **env.spec.kwargs}
        arguments.pop("render_mode", None)
        shown = ", ".join(f"{name}={_describe_argument(value)}" for name, value in sorted(arguments.items()))
        layers.append(f"{qualified_name(type(env))}({shown})")
        if not isinstance(env, gym.Wrapper):
            return layers
        env = env.env


def _describe_argument(value: Any) -> str:
    """Describe an argument so that other values look different, and the same value looks the same after a restart."""
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {_describe_argument(each)}' for key, each in value.items())}}}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_describe_argument, value))}]"
    if isinstance(value, np.ndarray):
        return f"array {value.shape} {hashlib.sha256(value.tobytes()).hexdigest()[:8]}"
    is_scalar = isinstance(value, (bool, int, float, str, type(None), np.generic))
    return repr(value) if is_scalar else qualified_name(value if hasattr(value, "__qualname__") else type(value))
