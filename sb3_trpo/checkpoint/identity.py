"""What a run is: algorithm, policy, spaces, environments and settings. Only the same run goes on from a checkpoint."""

from __future__ import annotations

import copy
import hashlib
import inspect
import json
import math
import platform
import sys
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecNormalize

from sb3_trpo.checkpoint.codecs.environments import ask, describe
from sb3_trpo.checkpoint.codecs.nodes import qualified_name
from sb3_trpo.parallel.vec_env_layers import layers_of

NOT_SETTINGS = frozenset(("self", "policy", "env", "tensorboard_log", "verbose", "device", "distributed", "_init_setup_model"))
"""Keywords of the constructor that are described otherwise, or that may differ from one start to the next."""
NORMALIZATION = ("norm_obs", "norm_reward", "clip_obs", "clip_reward", "gamma", "epsilon", "norm_obs_keys")
SPACES_AND_SHAPES = ("observation_space", "action_space", "policy.")
"""Beginnings of the aspects that a model for evaluation must share."""
LIBRARIES = ("sb3-trpo", "stable-baselines3", "torch", "numpy", "gymnasium", "mujoco", "ale-py", "box2d", "box2d-py")
OF_SOME_RUNS = {"ale-py": "ale_py", "box2d": "Box2D", "box2d-py": "Box2D"}
"""Libraries that matter to runs which have imported them, by module."""


def identity(model: OnPolicyAlgorithm) -> dict[str, Any]:
    """
    Describe a run.

    :param model: with its environments
    :return: plain data by aspect
    """
    assert model.env is not None, "learn() needs an environment"
    described = {
        "algorithm": qualified_name(type(model)),
        "policy": qualified_name(type(model.policy)),
        "observation_space": _describe_space(model.observation_space),
        "action_space": _describe_space(model.action_space),
        "n_envs": model.n_envs,
        **_describe_envs(model.env),
        **describe_settings(model),
        **{f"policy.{name}": f"{tensor.dtype} {[*tensor.shape]}" for name, tensor in model.policy.state_dict().items()},
    }
    plain: dict[str, Any] = json.loads(json.dumps(described))
    return plain


def differences(saved: dict[str, Any], live: dict[str, Any]) -> list[str]:
    """
    Compare two runs.

    :param saved: the one in a checkpoint
    :param live: the one that is to go on
    :return: one text per aspect in which they differ
    """
    absent = "absent"
    pairs = {name: (saved.get(name, absent), live.get(name, absent)) for name in sorted(saved.keys() | live.keys())}
    return [f"{name}: {before!r} in the checkpoint, {now!r} here" for name, (before, now) in pairs.items() if before != now]


def describe_settings(model: OnPolicyAlgorithm) -> dict[str, Any]:
    """
    Describe what an algorithm's constructor was given.

    :param model: with the settings as attributes
    :return: plain data by keyword
    """
    described = {name: _describe(value) for name, value in present_settings(model).items()}
    plain: dict[str, Any] = json.loads(json.dumps(described))
    return plain


def present_settings(model: OnPolicyAlgorithm) -> dict[str, Any]:
    """
    Give what an algorithm's constructor was given, or what has replaced it.

    :param model: with the settings as attributes
    :return: settings by keyword
    """
    return {name: getattr(model, name) for name in settings_of(type(model)) if hasattr(model, name)}


def settings_of(cls: type[Any]) -> list[str]:
    """
    Name the settings that an algorithm's constructor takes.

    :param cls: the algorithm's class
    :return: keywords
    """
    names: dict[str, None] = {}
    for constructor in [vars(base)["__init__"] for base in cls.__mro__ if "__init__" in vars(base)]:
        parameters = inspect.signature(constructor).parameters.values()
        names |= {each.name: None for each in parameters if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)}
        if not any(each.kind is each.VAR_KEYWORD for each in parameters):
            break  # nothing is passed on that is not named here
    return [name for name in names if name not in NOT_SETTINGS]


def versions() -> dict[str, str]:
    """
    Name what determines the bits of a result besides the run itself.

    :return: versions of libraries, and the number of torch's threads
    """
    found = {"python": platform.python_version(), "machine": platform.machine(), "torch threads": str(th.get_num_threads())}
    idle = {name for name, module in OF_SOME_RUNS.items() if module not in sys.modules}
    for name in LIBRARIES:
        if name in idle:
            continue
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _describe_envs(env: VecEnv) -> dict[str, Any]:
    described: dict[str, Any] = {"vec_env": [qualified_name(type(layer)) for layer in layers_of(env)]}
    for layer in layers_of(env):
        if isinstance(layer, VecNormalize):
            described |= {f"VecNormalize.{name}": _describe(getattr(layer, name)) for name in NORMALIZATION}
        if isinstance(layer, (DummyVecEnv, SubprocVecEnv)):
            described["envs"] = [ask(layer, index, describe) for index in range(layer.num_envs)]
    return described


def _describe_space(space: Any) -> str:
    """Describe a space; its text shows only the extremes of the bounds of a Box."""
    if not isinstance(space, spaces.Box):
        return str(space)
    return f"{space} with bounds {hashlib.sha256(space.low.tobytes() + space.high.tobytes()).hexdigest()[:8]}"


def _describe(value: Any) -> Any:
    """Describe a setting: numbers and texts as they are, classes by name, a schedule by some of its values."""
    if isinstance(value, dict):
        return {str(key): _describe(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_describe(each) for each in value]
    if isinstance(value, np.generic):
        return _describe(value.item())
    if isinstance(value, float) and math.isnan(value):
        return "nan"  # which equals itself
    return value if isinstance(value, (bool, int, float, str, type(None))) else _describe_thing(value)


def _describe_thing(value: Any) -> Any:
    values = quarters(value)
    return qualified_name(value if hasattr(value, "__qualname__") else type(value)) if values is None else _describe(values)


QUARTERS = (1.0, 0.75, 0.5, 0.25, 0.0)
"""Where a schedule's values are shown."""
STEPS = 1000
"""
Parts of the run in which a schedule is compared with another. Two that pass as the same differ for less than a thousandth of
the run at a stretch, a single update or none in runs of up to a thousand; and even a schedule that takes a millisecond costs
no more than a second, once at the start.
"""
DIGITS = 9
"""To which values are compared: the last bits of an exponential differ between systems, deliberate changes are larger."""


def quarters(setting: Any) -> list[float] | None:
    """
    Give a schedule's values at each quarter of the run.

    :param setting: of an algorithm
    :return: five values, ``None`` if it is no schedule, or has no value at one of the quarters
    """
    values: list[float] = []
    for value in _values(setting, QUARTERS):
        if isinstance(value, str):
            return None
        values.append(value)
    return values or None


def present_value(setting: Any, progress: float) -> float | None:
    """
    Give a schedule's value.

    :param setting: of an algorithm
    :param progress: that remains
    :return: the value, ``None`` if it is no schedule or has none there
    """
    value = next(_values(setting, (progress,)), None)
    return value if isinstance(value, float) else None


def schedule_digests(settings: dict[str, Any]) -> dict[str, str]:
    """
    Digest all schedules among settings.

    :param settings: by name, perhaps nested
    :return: digests of the schedules' values all along the run, by name
    """
    found = {}
    for name, schedule in _callables(settings, ""):
        values = _values(schedule, (1.0 - step / STEPS for step in range(STEPS + 1)))
        first = next(values)
        if isinstance(first, float):  # some other function need not be called a thousand times
            text = " ".join(each if isinstance(each, str) else f"{each:.{DIGITS}g}" for each in (first, *values))
            found[name] = hashlib.sha256(text.encode()).hexdigest()[:16]
    return found


def schedule_differences(saved: dict[str, str], live: dict[str, str]) -> list[str]:
    """
    Compare schedules that agree at each quarter of the run.

    :param saved: digests in a checkpoint
    :param live: digests of the run that is to go on
    :return: one text per schedule that differs
    """
    return [
        f"{name}: the same schedule in the checkpoint and here at 100, 75, 50, 25 and 0% of what remains, but not in between"
        for name in sorted(saved.keys() & live.keys())
        if saved[name] != live[name]
    ]


def _values(setting: Any, points: Iterable[float]) -> Iterator[float | str]:
    """Evaluate a function, or a copy of an object, which may count its calls; where it raises, give the error's name."""
    if not _is_function(setting):
        return
    schedule = _copy_of(setting)
    for progress in points:
        try:
            yield float(schedule(progress))
        except Exception as error:  # which the user has written
            yield type(error).__name__


def _copy_of(schedule: Callable[..., Any]) -> Callable[..., Any]:
    try:
        return copy.deepcopy(schedule)
    except Exception:  # it cannot be copied
        return schedule


def _callables(value: Any, name: str) -> Iterator[tuple[str, Callable[..., Any]]]:
    """Find what can be called among settings, also in containers."""
    if isinstance(value, dict):
        for key, each in value.items():
            yield from _callables(each, f"{name}.{key}" if name else str(key))
    elif isinstance(value, (list, tuple)):
        for index, each in enumerate(value):
            yield from _callables(each, f"{name}.{index}")
    elif _is_function(value):
        yield name, value


def _is_function(value: Any) -> bool:
    return callable(value) and not isinstance(value, type)
