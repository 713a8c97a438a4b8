"""A model made from a checkpoint, for evaluation."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import numpy as np
import torch as th
from stable_baselines3.common import buffers, torch_layers
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.utils import ConstantSchedule
from torch import nn, optim

from sb3_trpo.checkpoint.codecs.codec import Decoder, Encoded
from sb3_trpo.checkpoint.codecs.inspection import qualified_name
from sb3_trpo.checkpoint.codecs.registry import CODECS
from sb3_trpo.checkpoint.identity import SPACES_AND_SHAPES, differences, identity, present_settings, settings_of
from sb3_trpo.checkpoint.limits import MANIFEST
from sb3_trpo.checkpoint.run import restore_policy, restore_statistics
from sb3_trpo.checkpoint.run_folder import newest_of_run
from sb3_trpo.checkpoint.schedules import present_value
from sb3_trpo.checkpoint.storage import Checkpoint, read

Model = TypeVar("Model", bound=OnPolicyAlgorithm)
KNOWN_MODULES: tuple[ModuleType, ...] = (nn, optim, torch_layers, buffers)
"""Where classes that settings name are looked up; no module is imported because a checkpoint names it."""
LARGEST_UNSEEN, LONGEST_ROLLOUT = 4096, 10**7
"""Integers in a policy's settings and steps per rollout up to these are accepted without evidence in the checkpoint."""
COUNTERS = ("num_timesteps", "_n_updates", "_n_iterations", "_n_rejected_steps", "_outcome_counts")


def encode_settings(model: OnPolicyAlgorithm) -> dict[str, Encoded]:
    """
    Encode an algorithm's settings, so that its model can be made again.

    :param model: a model, with the settings as attributes
    :return: JSON by keyword; a class by its name, a schedule by its present value
    """
    progress_remaining = model._current_progress_remaining
    settings = present_settings(model)
    aliases = {cls: alias for alias, cls in model.policy_aliases.items()}
    policy = aliases.get(model.policy_class, model.policy_class)
    return {name: _encode_setting(value, progress_remaining) for name, value in {"policy": policy, **settings}.items()}


def _encode_setting(value: Any, progress_remaining: float) -> Encoded:
    if isinstance(value, dict):
        return {"dict": {str(name): _encode_setting(each, progress_remaining) for name, each in value.items()}}
    if isinstance(value, (list, tuple)):
        return {"list": [_encode_setting(each, progress_remaining) for each in value]}
    if isinstance(value, (bool, int, float, str, type(None))):
        return value
    if isinstance(value, np.generic):
        return value.item()
    scheduled = present_value(value, progress_remaining)
    if scheduled is not None:
        return {"schedule": scheduled}
    return {"unknown": qualified_name(value if isinstance(value, type) else type(value))}


def _decode_setting(name: str, encoded: Encoded) -> Any:
    if not isinstance(encoded, dict):
        return encoded
    if "dict" in encoded:
        return {key: _decode_setting(f"{name}[{key!r}]", each) for key, each in encoded["dict"].items()}
    if "list" in encoded:
        return [_decode_setting(name, each) for each in encoded["list"]]
    if "schedule" in encoded:
        return ConstantSchedule(encoded["schedule"])
    for module in KNOWN_MODULES:
        found = getattr(module, encoded["unknown"].rpartition(".")[2], None)
        if isinstance(found, type) and qualified_name(found) == encoded["unknown"]:
            return found
    raise ValueError(
        f"{name} is {encoded['unknown']} in the checkpoint. It is not loaded by name, since a checkpoint must not run code. "
        f"Give {name.partition('[')[0]} to from_checkpoint() as it was given in training."
    )


def load_model(cls: type[Model], path: Path, env: GymEnv, device: th.device | str, given: dict[str, Any]) -> Model:
    """
    Make a model from a checkpoint.

    :param cls: class of the algorithm
    :param path: folder of a run, or one of the checkpoints in it
    :param env: environment for the model
    :param device: device of the networks
    :param given: keywords of the constructor; they replace the settings in the checkpoint
    :return: the model
    :raises ValueError: if there is no intact checkpoint, or it does not fit the environment
    """
    checkpoint = read(path) if (path / MANIFEST).exists() else newest_of_run(path)
    if checkpoint is None:
        raise ValueError(
            f"There is no intact checkpoint in {path}. Give the folder of a ResumableCheckpoint, or one inside it."
        )
    known = {"policy", *settings_of(cls)}
    encoded = {name: each for name, each in checkpoint.state["settings"].items() if name in known - given.keys()}
    _refuse_unfounded_sizes(encoded, checkpoint)
    given = {"distributed": False, **given}  # evaluation does not need the other ranks of the run
    settings = {name: _decode_setting(name, each) for name, each in encoded.items()}
    model = cls(env=env, device=device, **settings, **given)
    differing = differences(checkpoint.state["identity"], identity(model))
    differing = [text for text in differing if text.startswith(SPACES_AND_SHAPES)]
    if differing:
        raise ValueError(f"The checkpoint {checkpoint.path} does not fit:\n  " + "\n  ".join(differing))
    run, decoder = checkpoint.state["run"], Decoder(CODECS, checkpoint.arrays)
    restore_statistics(model, run["env"], decoder)
    restore_policy(model, run, decoder)
    decoder.decode_attributes(model, {name: run["model"][name] for name in COUNTERS if name in run["model"]}, "model")
    return model


def _refuse_unfounded_sizes(settings: dict[str, Encoded], checkpoint: Checkpoint) -> None:
    """Refuse sizes that no array of the checkpoint has, before networks and buffers of such sizes fill the memory."""
    sizes = {size for path, array in checkpoint.arrays.items() if path.startswith("policy") for size in array.shape}
    unfounded = [each for each in _integers(settings.get("policy_kwargs")) if each > LARGEST_UNSEEN and each not in sizes]
    unfounded += [each for each in _integers(settings.get("n_steps")) if each > LONGEST_ROLLOUT]
    if unfounded:
        raise ValueError(f"The checkpoint {checkpoint.path} asks for the size {unfounded[0]}, which nothing else in it has.")


def _integers(encoded: Encoded) -> list[int]:
    """Find all integers in a setting."""
    if isinstance(encoded, dict):
        return [each for part in encoded.values() for each in _integers(part)]
    if isinstance(encoded, list):
        return [each for part in encoded for each in _integers(part)]
    return [encoded] if isinstance(encoded, int) else []
