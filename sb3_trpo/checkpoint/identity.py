"""What a run is: algorithm, policy, spaces, environments and settings. Only the same run may continue from a checkpoint."""

from __future__ import annotations

import hashlib
import inspect
import json
import math
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecNormalize

from sb3_trpo.checkpoint.codecs.environments import describe_env
from sb3_trpo.checkpoint.codecs.inspection import qualified_name
from sb3_trpo.checkpoint.schedules import quarters
from sb3_trpo.checkpoint.worker_rpc import call
from sb3_trpo.parallel.vec_env_layers import layers_of

RANKS = ("distributed", "distributed_timeout")
NOT_SETTINGS = frozenset(("self", "policy", "env", "tensorboard_log", "verbose", "device", *RANKS, "_init_setup_model"))
"""Keywords of the constructor that are described elsewhere, or may differ from one start to the next."""
NORMALIZATION = ("norm_obs", "norm_reward", "clip_obs", "clip_reward", "gamma", "epsilon", "norm_obs_keys")
ADDED_SETTINGS: dict[str, Any] = {"max_state_kl": None, "state_kl_quantile": 1.0}
"""Settings that checkpoints of version 0.1.0 lack, with the values that do what it did."""
SPACES_AND_SHAPES = ("observation_space", "action_space", "policy.", "critics of costs")
"""Prefixes of the aspects that a model for evaluation must share with the run."""
LIBRARIES = ("sb3-trpo", "stable-baselines3", "torch", "numpy", "gymnasium", "mujoco", "ale-py", "box2d", "box2d-py")
IF_IMPORTED = {"ale-py": "ale_py", "box2d": "Box2D", "box2d-py": "Box2D"}
"""Libraries that matter only to runs that have imported them, with their modules."""


def identity(model: OnPolicyAlgorithm) -> dict[str, Any]:
    """
    Describe a run.

    :param model: a model with its environments
    :return: JSON by aspect
    """
    assert model.env is not None, "learn() needs an environment"
    described = {
        "algorithm": qualified_name(type(model)),
        "policy": qualified_name(type(model.policy)),
        "observation_space": _describe_space(model.observation_space),
        "action_space": _describe_space(model.action_space),
        "n_envs": model.n_envs,
        **_describe_envs(model.env),
        **{name: _describe(value) for name, value in present_settings(model).items()},
        **{f"policy.{name}": f"{tensor.dtype} {[*tensor.shape]}" for name, tensor in model.policy.state_dict().items()},
    }
    if limits := getattr(model, "cost_limits", None):
        described["critics of costs"] = sorted(limits)
    plain: dict[str, Any] = json.loads(json.dumps(described))  # it is compared with one that has been through JSON
    return plain


def differences(saved: dict[str, Any], live: dict[str, Any]) -> list[str]:
    """
    Compare two runs.

    :param saved: description in a checkpoint
    :param live: description of the run that is to continue
    :return: one text for each aspect in which they differ
    """
    absent = "absent"
    saved = {name: value for name, value in ADDED_SETTINGS.items() if name in live} | saved
    pairs = {name: (saved.get(name, absent), live.get(name, absent)) for name in sorted(saved.keys() | live.keys())}
    return [f"{name}: {before!r} in the checkpoint, {now!r} here" for name, (before, now) in pairs.items() if before != now]


def present_settings(model: OnPolicyAlgorithm) -> dict[str, Any]:
    """
    Return the settings of an algorithm, as passed to its constructor or as changed since.

    :param model: a model, with the settings as attributes
    :return: settings by keyword
    """
    return {name: getattr(model, name) for name in settings_of(type(model)) if hasattr(model, name)}


def settings_of(cls: type[Any]) -> list[str]:
    """
    List the settings that an algorithm's constructor accepts, including those that it passes on to base classes.

    :param cls: the algorithm's class
    :return: keywords
    """
    names: dict[str, None] = {}
    for constructor in [vars(base)["__init__"] for base in cls.__mro__ if "__init__" in vars(base)]:
        parameters = inspect.signature(constructor).parameters.values()
        names |= {each.name: None for each in parameters if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)}
        if not any(each.kind is each.VAR_KEYWORD for each in parameters):
            break  # it passes on no keywords but those it names
    return [name for name in names if name not in NOT_SETTINGS]


def versions() -> dict[str, str]:
    """
    List what determines the bits of a result, besides the run itself.

    :return: versions of libraries, and the number of torch's threads, since sums are split among them
    """
    found = {"python": platform.python_version(), "machine": platform.machine(), "torch threads": str(th.get_num_threads())}
    unused = {name for name, module in IF_IMPORTED.items() if module not in sys.modules}
    for name in LIBRARIES:
        if name in unused:
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
            described["envs"] = [call(layer, index, describe_env) for index in range(layer.num_envs)]
    return described


def _describe_space(space: Any) -> str:
    """Describe a space, with a digest of the bounds of a Box: its text shows only their extremes."""
    if not isinstance(space, spaces.Box):
        return str(space)
    return f"{space} with bounds {hashlib.sha256(space.low.tobytes() + space.high.tobytes()).hexdigest()[:8]}"


def _describe(value: Any) -> Any:
    """Describe a setting: numbers and strings as they are, classes by name, schedules by some of their values."""
    if isinstance(value, dict):
        return {str(key): _describe(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_describe(each) for each in value]
    if isinstance(value, np.generic):
        return _describe(value.item())
    if isinstance(value, float) and math.isnan(value):
        return "nan"  # unlike NaN, it equals itself
    return value if isinstance(value, (bool, int, float, str, type(None))) else _describe_object(value)


def _describe_object(value: Any) -> Any:
    values = quarters(value)
    return qualified_name(value if hasattr(value, "__qualname__") else type(value)) if values is None else _describe(values)
