"""Everything that the rest of a run depends on, as one node; and a run brought back to where it was."""

from __future__ import annotations

import hashlib
import random
import time
import warnings
from collections import Counter
from collections.abc import Container, Iterator, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, ProgressBarCallback
from stable_baselines3.common.logger import KVWriter, Logger
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from sb3_trpo.callback_tree import RunKeeper, callback_tree
from sb3_trpo.checkpoint.generators import record_global_generators, restore_global_generators
from sb3_trpo.checkpoint.identity import settings_of
from sb3_trpo.checkpoint.logs import record_logger, restore_logger
from sb3_trpo.checkpoint.nodes import LIVE, Node, brings_own_state, fingerprint, is_file_path, qualified_name
from sb3_trpo.checkpoint.recording import Recorder, record
from sb3_trpo.checkpoint.restoring import MismatchError, Restorer
from sb3_trpo.checkpoint.simulators import UNASKED
from sb3_trpo.crew import Crew
from sb3_trpo.distributed import ALONE, Ranks
from sb3_trpo.venvs import layers_of

MODEL_SKIPPED = frozenset(
    ("policy_class", "policy_kwargs", "lr_schedule", "start_time", "tensorboard_log", "verbose", "_total_timesteps", "_logger")
)
"""Attributes of a model that are settings, or belong to one call of ``learn()``."""
CALLBACK_SKIPPED = frozenset(("model", "parent", "locals", "globals", "verbose"))
"""Attributes of callbacks that are not their own."""
for known in (BaseAlgorithm, BaseCallback, Logger, KVWriter):
    record.register(known, lambda value, recorder, path: LIVE)

UNTOLD = (VecEnv, gym.Env, np.random.Generator, np.random.RandomState, random.Random, th.Generator)
"""Attributes of callbacks that may differ from one start of a script to the next without having changed."""
OF_EVERY_STEP = ("observations", "actions", "rewards", "advantages", "returns", "episode_starts", "values", "log_probs")
OF_MASKS = ("action_masks", "mask_dims")
OF_MEMORY = ("hidden_states_pi", "cell_states_pi", "hidden_states_vf", "cell_states_vf")
OF_READING = ("generator_ready", "seq_start_indices", "seq_end_indices", "pad", "pad_and_flatten")
OF_ENVS = ("_last_", "env", "_vec_normalize_env", "observation_space", "action_space")
"""Beginnings of the names of a model's attributes that are envs or parts of them, or go with the episodes under way."""
STANDARD_BUFFER = {*OF_EVERY_STEP, *OF_MASKS, *OF_MEMORY, *OF_READING}
"""What SB3's and sb3-contrib's rollout buffers hold, which the next rollout writes anew."""

Marks = dict[str, dict[str, str]]
"""Fingerprints of callbacks' attributes when ``learn()`` began: what has changed since is state, the rest is the script's."""


def record_run(
    model: OnPolicyAlgorithm, root: BaseCallback, marks: Marks, changed: Sequence[str] = ()
) -> tuple[Node, dict[str, np.ndarray]]:
    """
    Record a run between two iterations.

    :param model: that learns
    :param root: all its callbacks
    :param marks: of the callbacks when they started
    :param changed: settings of the model that are not what they were then
    :return: JSON and arrays
    """
    settings = frozenset(settings_of(type(model))).difference(changed)
    recorder, shallow = Recorder(), Recorder(descends=False)
    node = {
        "env": recorder.node(model.env, "env"),
        "lost": dict(recorder.opaque),
        "reset_seed": _reset_seed(model),
        "model": _record_attributes(model, recorder, "model", _skipped_of(model) | settings),
        "left_out": sorted({path.split("/")[1] for path in recorder.opaque if path.startswith("model/")}),
        "buffer": shallow.attributes(model.rollout_buffer, "buffer", skip=_skipped_of_buffer(model)),
        "policy": shallow.node(model.policy, "policy"),
        "optimizer": shallow.node(model.policy.optimizer, "optimizer"),
        "seconds": (time.time_ns() - model.start_time) / 1e9,
        "logger": record_logger(model.logger, recorder, "logger"),
        "callbacks": _record_callbacks(root, marks, recorder),
        "generators": record_global_generators(recorder),
    }
    return node, recorder.arrays | shallow.arrays


def restore_run(model: OnPolicyAlgorithm, root: BaseCallback, node: Node, arrays: dict[str, np.ndarray]) -> None:
    """
    Bring a run to where it was.

    :param model: made as the one that was recorded
    :param root: all its callbacks
    :param node: from :func:`record_run`
    :param arrays: from there
    :raises MismatchError: if something cannot become what it was
    """
    restorer = Restorer(arrays)
    restore_logger(model.logger, node["logger"], restorer, "logger", node["model"]["num_timesteps"])
    restorer.value(node["env"], model.env, "env")
    failed = [*restorer.failed]
    restore_policy(model, node, restorer)
    _restore_attributes(model, node["model"], restorer, "model", _skipped_of(model))
    restorer.attributes(model.rollout_buffer, node["buffer"], "buffer", skip=_skipped_of_buffer(model))
    model.start_time = time.time_ns() - int(1e9 * node["seconds"])
    _restore_callbacks(root, node["callbacks"], restorer)
    for text in restorer.failed[len(failed) :]:
        warnings.warn(f"The state of a callback's environment does not fit, and it goes on as it is: {text}", stacklevel=2)
    if failed:
        warnings.warn(
            f"The state of an environment does not fit the one that is there: {failed[0]}. The episodes under way begin anew, "
            "from a recorded seed; everything else goes on.",
            stacklevel=2,
        )
    if node["lost"] or failed:
        _begin_episodes(model, node["reset_seed"])
    restore_global_generators(node["generators"], restorer)


def continue_run(
    model: OnPolicyAlgorithm, root: BaseCallback, node: Node, arrays: dict[str, np.ndarray], ranks: Ranks
) -> None:
    """
    Go on from where the first of another number of ranks was: with new episodes, and generators seeded anew.

    :param model: made as the one that was recorded
    :param root: all its callbacks
    :param node: from :func:`record_run`
    :param arrays: from there
    :param ranks: that go on
    :raises MismatchError: if policy or optimizer do not fit
    """
    restorer = Restorer(arrays)
    restore_policy(model, node, restorer)
    restore_statistics(model, node["env"], restorer)
    of_run = {name: value for name, value in node["model"].items() if not name.startswith(OF_ENVS)}
    _restore_attributes(model, of_run, restorer, "model", _skipped_of(model))
    model.start_time = time.time_ns() - int(1e9 * node["seconds"])
    there = dict(_callbacks(root))
    _restore_callbacks(root, {key: value for key, value in node["callbacks"].items() if key in there}, restorer)
    if ranks.is_first:
        restore_logger(model.logger, node["logger"], restorer, "logger", node["model"]["num_timesteps"])
    model.set_random_seed(node["reset_seed"])
    _begin_episodes(model, _own_seed(node["reset_seed"], ranks))


def restore_policy(model: OnPolicyAlgorithm, node: Node, restorer: Restorer) -> None:
    """
    Bring a policy and its optimizer to where they were.

    :param model: whose they are
    :param node: from :func:`record_run`
    :param restorer: has its arrays
    :raises MismatchError: if they do not fit
    """
    restorer.value(node["policy"], model.policy, "policy")
    restorer.value(node["optimizer"], model.policy.optimizer, "optimizer")


def restore_statistics(model: OnPolicyAlgorithm, env_node: Node, restorer: Restorer) -> None:
    """
    Give the env's ``VecNormalize`` the statistics of the run's.

    :param model: whose env it is
    :param env_node: from :func:`record_run`
    :param restorer: has its arrays
    :raises ValueError: if the run had one, and this env has not
    """
    live = model.get_vec_normalize_env()
    while env_node and env_node["vec_env"] != qualified_name(VecNormalize):
        env_node = env_node["state"].get("venv")
    if env_node is None:
        return
    if live is None:
        raise ValueError(
            "The run normalised its observations or rewards, but env is not wrapped in VecNormalize. Give "
            "VecNormalize(env, training=False, norm_reward=False): its statistics are filled in from the checkpoint."
        )
    statistics = {name: env_node["state"][name] for name in ("obs_rms", "ret_rms") if name in env_node["state"]}
    restorer.attributes(live, statistics, "VecNormalize")


def mark(root: BaseCallback) -> Marks:
    """
    Take the fingerprints of all callbacks' attributes.

    :param root: all callbacks
    :return: fingerprints by callback and attribute
    """
    return {
        key: {name: fingerprint(node, recorder.arrays) for name, node, recorder in _attributes_of(callback, key)}
        for key, callback in _callbacks(root)
    }


def lost_parts(lost: dict[str, str]) -> str:
    """
    Say what of an env cannot be restored.

    :param lost: types by path
    :return: one text, which names the first
    """
    path, name = next(iter(lost.items()))
    steps = [step for step in path.split("/") if step not in ("env", "venv") and not step.isdigit()]
    return f"its attribute {steps[0]!r}, with a {name}," if name != UNASKED else f"what {UNASKED},"


def _skipped_of(model: OnPolicyAlgorithm) -> frozenset[str]:
    return MODEL_SKIPPED.union(model._excluded_save_params())


def _skipped_of_buffer(model: OnPolicyAlgorithm) -> frozenset[str]:
    """Name what buffers hold: settings, and what the next rollout writes anew."""
    return frozenset(name for name in vars(model.rollout_buffer) if name in STANDARD_BUFFER)


def _reset_seed(model: OnPolicyAlgorithm) -> int:
    """Choose a seed for envs that cannot be restored, without drawing from any generator."""
    seed = int(hashlib.sha256(f"{model.seed} {model.num_timesteps}".encode()).hexdigest()[:7], 16)
    return _own_seed(seed, getattr(model, "_ranks", ALONE))


def _own_seed(seed: int, ranks: Ranks) -> int:
    own = ranks.seed_of(seed)
    assert own is not None
    return own


def _begin_episodes(model: OnPolicyAlgorithm, seed: int) -> None:
    """Reset the envs; statistics of observations stay those of the checkpoint."""
    assert model.env is not None, "a run has environments"
    followers = [layer for layer in layers_of(model.env) if isinstance(layer, VecNormalize) and layer.training]
    for layer in followers:
        layer.training = False
    model.env.seed(seed)
    model._last_obs = model.env.reset()  # type: ignore[assignment]  # a Tuple is no space of SB3's policies
    for layer in followers:
        layer.training = True
    model._last_episode_starts = np.ones(model.env.num_envs, dtype=bool)
    normalizer = model.get_vec_normalize_env()
    if normalizer is not None:
        model._last_original_obs = normalizer.get_original_obs()


def _callbacks(root: BaseCallback) -> Iterator[tuple[str, BaseCallback]]:
    """Name callbacks by their class and how many of it came before: lists and progress bars around them do not matter."""
    met: Counter[str] = Counter()
    for callback in callback_tree(root):
        name = qualified_name(type(callback))
        if not isinstance(callback, (RunKeeper, CallbackList, ProgressBarCallback, Crew)):
            yield f"{name}#{met[name]}", callback
            met[name] += 1


def _attributes_of(callback: BaseCallback, key: str) -> Iterator[tuple[str, Node, Recorder]]:
    for name, value in vars(callback).items():
        if name not in CALLBACK_SKIPPED and not is_file_path(name, value):
            path = f"callbacks/{key}/{name}"
            recorder, node = _record_deeply(value, path) or (Recorder(descends=False), LIVE)
            if not recorder.descends:
                node = recorder.node(value, path)
            if node != LIVE:
                yield name, node, recorder


def _record_deeply(value: Any, path: str) -> tuple[Recorder, Node] | None:
    """Record a value with all objects that belong to it, if there are no others."""
    recorder = Recorder()
    try:
        node = recorder.node(value, path)
    except RecursionError:
        return None
    return (recorder, node) if not recorder.opaque or isinstance(value, (VecEnv, gym.Env)) else None


def _record_callbacks(root: BaseCallback, marks: Marks, recorder: Recorder) -> dict[str, Node]:
    nodes: dict[str, Node] = {}
    shared = Recorder()  # callbacks may share objects
    for key, callback in _callbacks(root):
        if brings_own_state(callback):
            nodes[key] = {"own": recorder.node(callback.get_state(), f"callbacks/{key}")}  # type: ignore[attr-defined]  # it is there
            continue
        state = {}
        for name, node, part in _attributes_of(callback, key):
            mark_of_it = marks.get(key, {}).get(name)  # some callbacks come only when training has begun
            is_state = isinstance(getattr(callback, name), UNTOLD) or fingerprint(node, part.arrays) != mark_of_it
            if is_state:
                state[name] = shared.node(getattr(callback, name), f"callbacks/{key}/{name}") if part.descends else node
                recorder.absorb(part.arrays if not part.descends else {}, {})
        nodes[key] = {"state": state}
    recorder.absorb(shared.arrays, {})
    return nodes


def _restore_callbacks(root: BaseCallback, nodes: dict[str, Node], restorer: Restorer) -> None:
    there = dict(_callbacks(root))
    for key, node in nodes.items():
        if key not in there:
            warnings.warn(f"The checkpoint holds the state of a {key.split('#')[0]}, which this run has not.", stacklevel=2)
            continue
        if "own" in node:
            _restore_own(there[key], restorer, node["own"], f"callbacks/{key}")
        else:
            _restore_attributes(there[key], node["state"], restorer, f"callbacks/{key}", CALLBACK_SKIPPED)


def _record_attributes(owner: Any, recorder: Recorder, path: str, skip: Container[str]) -> dict[str, Node]:
    try:
        return recorder.attributes(owner, path, skip=skip)
    except RecursionError:
        recorder.opaque[f"{path}/(a chain of objects)"] = "RecursionError"
        shallow = Recorder(descends=False)
        nodes = shallow.attributes(owner, path, skip=skip)
        recorder.absorb(shallow.arrays, {})
        return nodes


def _restore_own(callback: BaseCallback, restorer: Restorer, node: Node, path: str) -> None:
    try:
        callback.set_state(restorer.value(node, None, path))  # type: ignore[attr-defined]  # it has had get_state()
    except Exception as error:  # which the user has written
        warnings.warn(f"A callback's state could not be restored, and the run goes on without: {error}", stacklevel=2)


def _restore_attributes(owner: Any, nodes: dict[str, Node], restorer: Restorer, path: str, skip: Container[str]) -> None:
    """Restore attributes one by one: one that cannot be must not keep the run from going on."""
    for name, node in nodes.items():
        try:
            restorer.attributes(owner, {name: node}, path, skip)
        except MismatchError as error:
            warnings.warn(f"An attribute could not be restored, and the run goes on with what is there: {error}", stacklevel=2)
