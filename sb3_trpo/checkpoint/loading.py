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

from sb3_trpo.checkpoint.codecs.nodes import Node, qualified_name
from sb3_trpo.checkpoint.codecs.restoring import Restorer
from sb3_trpo.checkpoint.identity import SPACES_AND_SHAPES, differences, identity, present_settings, present_value, settings_of
from sb3_trpo.checkpoint.limits import MANIFEST
from sb3_trpo.checkpoint.ranks import newest_in
from sb3_trpo.checkpoint.run import restore_policy, restore_statistics
from sb3_trpo.checkpoint.storage import Checkpoint, read

Model = TypeVar("Model", bound=OnPolicyAlgorithm)
KNOWN: tuple[ModuleType, ...] = (nn, optim, torch_layers, buffers)
"""Where classes that settings name are looked for; nothing is imported for a checkpoint's sake."""
LARGEST_UNSEEN, LONGEST_ROLLOUT = 4096, 10**7
"""Up to where integers in a policy's settings, and steps per rollout, are believed without evidence."""
COUNTERS = ("num_timesteps", "_n_updates", "_n_iterations", "_n_rejected_steps", "_outcome_counts")


def settings(model: OnPolicyAlgorithm) -> dict[str, Node]:
    """
    Write down an algorithm's settings.

    :param model: with the settings as attributes
    :return: plain data by keyword; a class by its name, a schedule by its present value
    """
    progress = model._current_progress_remaining
    named = present_settings(model)
    aliases = {cls: alias for alias, cls in model.policy_aliases.items()}
    policy = aliases.get(model.policy_class, model.policy_class)
    return {name: _plain(value, progress) for name, value in {"policy": policy, **named}.items()}


def _plain(value: Any, progress: float) -> Node:
    if isinstance(value, dict):
        return {"dict": {str(name): _plain(each, progress) for name, each in value.items()}}
    if isinstance(value, (list, tuple)):
        return {"list": [_plain(each, progress) for each in value]}
    if isinstance(value, (bool, int, float, str, type(None))):
        return value
    if isinstance(value, np.generic):
        return value.item()
    scheduled = present_value(value, progress)
    if scheduled is not None:
        return {"schedule": scheduled}
    return {"unknown": qualified_name(value if isinstance(value, type) else type(value))}


def _setting(name: str, node: Node) -> Any:
    """Make a setting of plain data."""
    if not isinstance(node, dict):
        return node
    if "dict" in node:
        return {key: _setting(f"{name}[{key!r}]", each) for key, each in node["dict"].items()}
    if "list" in node:
        return [_setting(name, each) for each in node["list"]]
    if "schedule" in node:
        return ConstantSchedule(node["schedule"])
    for module in KNOWN:
        found = getattr(module, node["unknown"].rpartition(".")[2], None)
        if isinstance(found, type) and qualified_name(found) == node["unknown"]:
            return found
    raise ValueError(
        f"{name} is {node['unknown']} in the checkpoint, which is not loaded by name, for a checkpoint must not run code. "
        f"Give {name.partition('[')[0]} to from_checkpoint() as it was given in training."
    )


def load_model(cls: type[Model], path: Path, env: GymEnv, device: th.device | str, given: dict[str, Any]) -> Model:
    """
    Make the model of a checkpoint.

    :param cls: the algorithm
    :param path: of a checkpoint, or of the folder of a run
    :param env: for the model
    :param device: where the networks live
    :param given: settings that replace the checkpoint's
    :return: the model
    :raises ValueError: if there is no intact checkpoint, or it does not fit the env
    """
    checkpoint = read(path) if (path / MANIFEST).exists() else newest_in(path)
    if checkpoint is None:
        raise ValueError(
            f"There is no intact checkpoint in {path}. Give the folder of a ResumableCheckpoint, or one inside it."
        )
    known = {"policy", *settings_of(cls)}
    nodes = {name: node for name, node in checkpoint.state["settings"].items() if name in known - given.keys()}
    _refuse_absurd(nodes, checkpoint)
    given = {"distributed": False, **given}  # whoever evaluates need not have the other ranks' company
    model = cls(env=env, device=device, **{name: _setting(name, node) for name, node in nodes.items()}, **given)
    saved, live = checkpoint.state["identity"], identity(model)
    differing = [text for text in differences(saved, live) if text.startswith(SPACES_AND_SHAPES)]
    if differing:
        raise ValueError(f"The checkpoint {checkpoint.path} does not fit:\n  " + "\n  ".join(differing))
    run, restorer = checkpoint.state["run"], Restorer(checkpoint.arrays)
    restore_statistics(model, run["env"], restorer)
    restore_policy(model, run, restorer)
    restorer.attributes(model, {name: run["model"][name] for name in COUNTERS if name in run["model"]}, "model")
    return model


def _refuse_absurd(nodes: dict[str, Node], checkpoint: Checkpoint) -> None:
    """Refuse sizes that the checkpoint's own arrays do not have, before a network or a buffer of such a size is made."""
    sizes = {size for path, array in checkpoint.arrays.items() if path.startswith("policy") for size in array.shape}
    absurd = [each for each in _integers(nodes.get("policy_kwargs")) if each > LARGEST_UNSEEN and each not in sizes]
    absurd += [each for each in _integers(nodes.get("n_steps")) if each > LONGEST_ROLLOUT]
    if absurd:
        raise ValueError(f"The checkpoint {checkpoint.path} asks for the size {absurd[0]}, which nothing else in it has.")


def _integers(node: Node) -> list[int]:
    """Find all integers in a setting."""
    if isinstance(node, dict):
        return [each for part in node.values() for each in _integers(part)]
    if isinstance(node, list):
        return [each for part in node for each in _integers(part)]
    return [node] if isinstance(node, int) else []
