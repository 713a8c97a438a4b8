"""Everything that the rest of a run depends on, as one node; and a run brought back to where it was."""

from __future__ import annotations

import hashlib
import math
import time
import warnings

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import VecNormalize

from sb3_trpo.checkpoint.callback_state import (
    Marks,
    changed_settings,
    named_callbacks,
    record_attributes,
    record_callbacks,
    restore_attributes,
    restore_callbacks,
)
from sb3_trpo.checkpoint.codecs.environments import UNASKED
from sb3_trpo.checkpoint.codecs.generators import record_global_generators, restore_global_generators
from sb3_trpo.checkpoint.codecs.logs import record_logger, restore_logger
from sb3_trpo.checkpoint.codecs.nodes import Node, qualified_name
from sb3_trpo.checkpoint.codecs.recording import Recorder
from sb3_trpo.checkpoint.codecs.restoring import Restorer
from sb3_trpo.checkpoint.identity import present_settings
from sb3_trpo.parallel.communicator import ALONE, Communicator
from sb3_trpo.parallel.sharding import seed_of_rank
from sb3_trpo.parallel.vec_env_layers import layers_of

MODEL_SKIPPED = frozenset(
    ("policy_class", "policy_kwargs", "lr_schedule", "start_time", "tensorboard_log", "verbose", "_total_timesteps", "_logger")
)
"""Attributes of a model that are settings, or belong to one call of ``learn()``."""
OF_EVERY_STEP = ("observations", "actions", "rewards", "advantages", "returns", "episode_starts", "values", "log_probs")
OF_MASKS = ("action_masks", "mask_dims")
OF_MEMORY = ("hidden_states_pi", "cell_states_pi", "hidden_states_vf", "cell_states_vf")
OF_READING = ("generator_ready", "seq_start_indices", "seq_end_indices", "pad", "pad_and_flatten")
OF_ENVS = ("_last_", "env", "_vec_normalize_env", "observation_space", "action_space")
"""Beginnings of the names of a model's attributes that are envs or parts of them, or go with the episodes under way."""
STANDARD_BUFFER = {*OF_EVERY_STEP, *OF_MASKS, *OF_MEMORY, *OF_READING}
"""What SB3's and sb3-contrib's rollout buffers hold, which the next rollout writes anew."""


def record_run(model: OnPolicyAlgorithm, root: BaseCallback, marks: Marks) -> tuple[Node, dict[str, np.ndarray]]:
    """
    Record a run between two iterations.

    :param model: that learns
    :param root: all its callbacks
    :param marks: of the time when ``learn()`` began
    :return: JSON and arrays
    """
    settings = present_settings(model)
    unchanged = settings.keys() - {*changed_settings(settings, marks)}
    recorder, shallow = Recorder(places=marks.places), Recorder(descends=False, places=marks.places)
    node = {
        "env": recorder.node(model.env, "env"),
        "lost": dict(recorder.opaque),
        "reset_seed": _reset_seed(model),
        "model": record_attributes(model, recorder, "model", _skipped_of(model) | unchanged),
        "left_out": sorted({path.split("/")[1] for path in recorder.opaque if path.startswith("model/")}),
        "buffer": shallow.attributes(model.rollout_buffer, "buffer", skip=_skipped_of_buffer(model)),
        "policy": shallow.node(model.policy, "policy"),
        "optimizer": shallow.node(model.policy.optimizer, "optimizer"),
        "seconds": (time.time_ns() - model.start_time) / 1e9,
        "logger": record_logger(model.logger, recorder, "logger"),
        "callbacks": record_callbacks(root, marks, recorder),
        "generators": record_global_generators(recorder),
    }
    return {**node, "changed_places": sorted(marks.places.changed)}, recorder.arrays | shallow.arrays


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
    restore_attributes(model, node["model"], restorer, "model", _skipped_of(model))
    restorer.attributes(model.rollout_buffer, node["buffer"], "buffer", skip=_skipped_of_buffer(model))
    model.start_time = time.time_ns() - int(1e9 * node["seconds"])
    restore_callbacks(root, node["callbacks"], restorer)
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
    model: OnPolicyAlgorithm, root: BaseCallback, node: Node, arrays: dict[str, np.ndarray], communicator: Communicator
) -> None:
    """
    Go on from where the first of another number of ranks was: with new episodes, and generators seeded anew.

    :param model: made as the one that was recorded
    :param root: all its callbacks
    :param node: from :func:`record_run`
    :param arrays: from there
    :param communicator: that go on
    :raises MismatchError: if policy or optimizer do not fit
    """
    restorer = Restorer(arrays)
    restore_policy(model, node, restorer)
    restore_statistics(model, node["env"], restorer)
    of_run = {name: value for name, value in node["model"].items() if not name.startswith(OF_ENVS)}
    restore_attributes(model, of_run, restorer, "model", _skipped_of(model))
    model.start_time = time.time_ns() - int(1e9 * node["seconds"])
    there = dict(named_callbacks(root))
    restore_callbacks(root, {key: value for key, value in node["callbacks"].items() if key in there}, restorer)
    if communicator.is_first:
        restore_logger(model.logger, node["logger"], restorer, "logger", node["model"]["num_timesteps"])
    model.set_random_seed(node["reset_seed"])
    _begin_episodes(model, _own_seed(node["reset_seed"], communicator))


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
    return _own_seed(seed, getattr(model, "_communicator", ALONE))


def _own_seed(seed: int, communicator: Communicator) -> int:
    own = seed_of_rank(seed, communicator)
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


def plain_total(total: float) -> float | None:
    """
    Give a total as JSON has it, which knows no infinity.

    :param total: timesteps of a run
    :return: the same, ``None`` for a run without end
    """
    return total if math.isfinite(total) else None


def describe_total(total: float | None) -> str:
    """
    Name a total.

    :param total: from :func:`plain_total`
    :return: a text
    """
    return "infinity" if total is None else f"{total:,} timesteps"


def describe_progress(n_timesteps: int, total: float) -> str:
    """
    Say how far a run is.

    :param n_timesteps: of the run
    :param total: where it ends
    :return: a text
    """
    return (
        f"{n_timesteps:,} of {total:,} timesteps"
        if math.isfinite(total)
        else f"{n_timesteps:,} timesteps of a run without end"
    )
