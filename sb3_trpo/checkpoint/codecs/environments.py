"""
The state of environments: of one with all its wrappers, and of vectorised ones, in this process or in workers.

An env's state is the plain data among its attributes, its generators, and what its simulator knows or has been told to do.

Where an env (or a wrapper) has methods ``get_state()`` and ``set_state(state)`` of its own, these are asked for its part.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecEnvWrapper

import sb3_trpo.checkpoint.codecs.arrays
import sb3_trpo.checkpoint.codecs.logs
import sb3_trpo.checkpoint.codecs.simulators.atari
import sb3_trpo.checkpoint.codecs.simulators.box2d
import sb3_trpo.checkpoint.codecs.simulators.mujoco  # noqa: F401  # they tell how to record parts of envs
from sb3_trpo.checkpoint.codecs.file_paths import Places
from sb3_trpo.checkpoint.codecs.generators import record_global_generators, restore_global_generators
from sb3_trpo.checkpoint.codecs.nodes import ANSWER, LIVE, Node, brings_own_state, qualified_name
from sb3_trpo.checkpoint.codecs.recording import Recorder, record
from sb3_trpo.checkpoint.codecs.restoring import MAKERS, MismatchError, Restorer
from sb3_trpo.checkpoint.codecs.simulators.replay import start_tape, stop_tape
from sb3_trpo.parallel.vec_env_layers import layers_of

UNASKED = "is a bare env in a worker process; wrapped in SB3's Monitor, as make_vec_env does, its state could be saved"
VEC_NOT_STATE = frozenset(("class_attributes", "num_envs", "render_mode", "metadata", "remotes", "work_remotes", "processes"))
SPENT_IN_A_STEP = frozenset(("envs", "actions", "buf_obs", "buf_dones", "buf_rews", "buf_infos", "keys", "waiting", "closed"))
"""Attributes of DummyVecEnv and SubprocVecEnv that each step writes anew, or that never change."""


class EnvState(NamedTuple):
    """
    What one environment knows.

    :param node: JSON
    :param arrays: by path
    :param opaque: types of what cannot be recorded, by path; if there are any, the env cannot be restored
    :param places: what is known of paths in a file system
    """

    node: Node
    arrays: dict[str, np.ndarray]
    opaque: dict[str, str]
    places: Places | None = None


def get_state(env: gym.Env[Any, Any], places: Places | None = None) -> EnvState:
    """
    Read the state of an env and of everything it wraps.

    :param env: outermost wrapper, or the env itself
    :param places: what is known of paths in a file system
    :return: its state
    """
    recorder = Recorder(places=places)
    try:
        return EnvState(recorder.node(env, "env"), recorder.arrays, recorder.opaque, recorder.places)
    except RecursionError:
        return EnvState(LIVE, {}, {"env": "chain of objects that is too long"}, recorder.places)


def set_state(env: gym.Env[Any, Any], state: EnvState) -> None:
    """
    Bring an env, made in the same way as the one that was read, into a state.

    :param env: outermost wrapper, or the env itself
    :param state: from :func:`get_state`
    :raises MismatchError: if the env is not made of the same parts
    """
    Restorer(state.arrays).value(state.node, env, "env")


def get_state_of_worker(env: gym.Env[Any, Any], places: Places | None = None) -> EnvState:
    """
    Read the state of an env and of the generators of the process that it has to itself.

    :param env: of the worker
    :param places: what is known of paths in a file system
    :return: both
    """
    recorder = Recorder()
    state = get_state(env, places)
    recorder.absorb(state.arrays, state.opaque)
    node = {"env": state.node, **record_global_generators(recorder, with_cuda=False)}
    return EnvState(node, recorder.arrays, recorder.opaque, state.places)


def set_state_of_worker(env: gym.Env[Any, Any], state: EnvState) -> None:
    """
    Bring an env and its process into a state.

    :param env: of the worker
    :param state: from :func:`get_state_of_worker`
    :raises MismatchError: if the env is not made of the same parts
    """
    generators = {name: node for name, node in state.node.items() if name not in ("env", "cuda")}
    restore_global_generators(generators, Restorer(state.arrays))
    set_state(env, state._replace(node=state.node["env"]))


def describe(env: gym.Env[Any, Any]) -> list[str]:
    """
    Name an env and its wrappers, with the arguments that Gymnasium knows.

    :param env: outermost wrapper, or the env itself
    :return: one text per layer, outermost first
    """
    layers = []
    while True:
        arguments = dict(getattr(env, "_saved_kwargs", {}))
        if not isinstance(env, gym.Wrapper) and env.spec is not None:
            arguments |= {"id": env.spec.id, **env.spec.kwargs}
        arguments.pop("render_mode", None)
        shown = ", ".join(f"{name}={_show(value)}" for name, value in sorted(arguments.items()))
        layers.append(f"{qualified_name(type(env))}({shown})")
        if not isinstance(env, gym.Wrapper):
            return layers
        env = env.env


def _show(value: Any) -> str:
    """Show an argument such that another one looks different, and the same one does not."""
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {_show(each)}' for key, each in value.items())}}}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_show, value))}]"
    if isinstance(value, np.ndarray):
        return f"array {value.shape} {hashlib.sha256(value.tobytes()).hexdigest()[:8]}"
    is_scalar = isinstance(value, (bool, int, float, str, type(None), np.generic))
    return repr(value) if is_scalar else qualified_name(value if hasattr(value, "__qualname__") else type(value))


class Question:
    """
    Something to be asked of an env in a worker process.

    SB3's workers run no function that they are sent, but they do tell whether a layer of their env is an instance of a class,
    and what is sent as that class answers for itself.

    :param function: to call with the env
    :param arguments: further ones
    """

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.function = function
        self.arguments = arguments

    def __instancecheck__(self, env: Any) -> bool:
        """Answer, and leave the answer with the env."""
        try:
            vars(env)[ANSWER] = self.function(env, *self.arguments)
        except Exception as error:  # it would end the worker
            vars(env)[ANSWER] = MismatchError(f"{type(error).__name__}: {error}")
        return True


def ask(venv: VecEnv, index: int, function: Callable[..., Any], *arguments: Any) -> Any:
    """
    Call a function with an env of a DummyVecEnv, or in a worker of a SubprocVecEnv.

    :param venv: of either kind
    :param index: of the env
    :param function: that the worker can import
    :param arguments: further ones
    :return: what the function returned; :data:`UNASKED` where a worker cannot be asked
    :raises MismatchError: if it failed in a worker
    """
    if isinstance(venv, DummyVecEnv):
        return function(venv.envs[index], *arguments)
    question: Any = Question(function, *arguments)
    (was_asked,) = venv.env_is_wrapped(question, indices=index)
    (answer,) = venv.get_attr(ANSWER, indices=index) if was_asked else (UNASKED,)
    if isinstance(answer, MismatchError):
        raise answer
    return answer


@contextmanager
def taped(venvs: Iterable[VecEnv]) -> Iterator[None]:
    """
    Keep the actions of envs whose episodes are restored by playing them again; enter it before their first reset.

    :param venvs: with all their wrappers
    :return: a context, which leaves the envs as they were
    """
    layers = {id(layer): layer for venv in venvs for layer in layers_of(venv)}
    bases = [each for each in layers.values() if isinstance(each, (DummyVecEnv, SubprocVecEnv))]
    for base in bases:
        _ask_all(base, start_tape)
    try:
        yield
    finally:
        for base in bases:
            with suppress(OSError, EOFError):  # a worker is gone, and learn() is on its way out because of that
                _ask_all(base, stop_tape)


def _ask_all(base: DummyVecEnv | SubprocVecEnv, function: Callable[..., Any]) -> None:
    """Call a function with each env, unless workers are closed or in the midst of a step."""
    if isinstance(base, DummyVecEnv) or not (base.closed or base.waiting):
        for index in range(base.num_envs):
            ask(base, index, function)


@record.register(VecEnv)
def _(value: VecEnv, recorder: Recorder, path: str) -> Node:
    return recorder.once(value, path, lambda: _record_vec_env(value, recorder, path))


def _record_vec_env(venv: VecEnv, recorder: Recorder, path: str) -> Node:
    node: Node = {"vec_env": qualified_name(type(venv))}
    if isinstance(venv, (DummyVecEnv, SubprocVecEnv)):
        places = recorder.places.parts(path, venv.num_envs)
        envs = [_record_env(venv, index, recorder, f"{path}/{index}", each) for index, each in enumerate(places)]
        return node | {"state": recorder.attributes(venv, path, skip=VEC_NOT_STATE | SPENT_IN_A_STEP), "envs": envs}
    if brings_own_state(venv):
        inner = {"venv": recorder.node(venv.venv, f"{path}/venv")} if isinstance(venv, VecEnvWrapper) else {}
        own = recorder.node(venv.get_state(), f"{path}/own")  # type: ignore[attr-defined]  # it has been found there
        return node | {"state": inner, "own": own}
    return node | {"state": recorder.attributes(venv, path, skip=VEC_NOT_STATE)}


def _record_env(venv: VecEnv, index: int, recorder: Recorder, path: str, places: Places) -> Node:
    state = ask(venv, index, get_state_of_worker if isinstance(venv, SubprocVecEnv) else get_state, places)
    if state == UNASKED:
        recorder.opaque[path] = UNASKED
        return None
    recorder.absorb(state.arrays, state.opaque, prefix=f"{path}/")
    recorder.places.absorb(state.places, prefix=f"{path}/")
    return state.node


def _make_vec_env(restorer: Restorer, node: Node, live: Any, path: str) -> Any:
    is_fit = isinstance(live, VecEnv) and qualified_name(type(live)) == node["vec_env"]
    if not is_fit or ("own" in node and not brings_own_state(live)):
        raise MismatchError(f"{path} was a {node['vec_env']}, but is a {qualified_name(type(live))}")
    if "envs" in node and len(node["envs"]) != live.num_envs:
        raise MismatchError(f"{path} had {len(node['envs'])} environments, but has {live.num_envs}")
    restorer.attributes(live, node["state"], path, skip=VEC_NOT_STATE | SPENT_IN_A_STEP)
    if "own" in node:
        live.set_state(restorer.value(node["own"], None, f"{path}/own"))
    for index, env_node in enumerate(node.get("envs", ())):
        prefix = f"{path}/{index}/"
        arrays = {key.removeprefix(prefix): each for key, each in restorer.arrays.items() if key.startswith(prefix)}
        try:
            if env_node is not None:
                setter = set_state_of_worker if isinstance(live, SubprocVecEnv) else set_state
                ask(live, index, setter, EnvState(env_node, arrays, {}))
        except MismatchError as error:
            restorer.failed.append(f"{path}/{index}: {error}")
    return live


MAKERS["vec_env"] = _make_vec_env
