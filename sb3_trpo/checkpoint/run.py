"""Encode and restore a run between two iterations: everything that the rest of the run depends on."""

from __future__ import annotations

import hashlib
import math
import time
import warnings

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import VecNormalize

from sb3_trpo.checkpoint.callback_state import (
    Baseline,
    changed_settings,
    decode_attributes,
    decode_callbacks,
    encode_attributes,
    encode_callbacks,
    named_callbacks,
)
from sb3_trpo.checkpoint.codecs.codec import Decoder, Encoded, Encoder
from sb3_trpo.checkpoint.codecs.generators import decode_global_generators, encode_global_generators
from sb3_trpo.checkpoint.codecs.inspection import qualified_name
from sb3_trpo.checkpoint.codecs.logs import decode_logger, encode_logger
from sb3_trpo.checkpoint.codecs.registry import CODECS
from sb3_trpo.checkpoint.identity import present_settings
from sb3_trpo.checkpoint.worker_rpc import CANNOT_BE_CALLED
from sb3_trpo.parallel.communicator import ALONE, Communicator
from sb3_trpo.parallel.consistency import policies_of
from sb3_trpo.parallel.sharding import seed_of_rank
from sb3_trpo.parallel.vec_env_layers import layers_of

SETTINGS = ("policy_class", "policy_kwargs", "lr_schedule", "tensorboard_log", "verbose", "distributed_timeout")
NOT_STATE = frozenset((*SETTINGS, "start_time", "_total_timesteps", "_logger"))
"""Attributes of a model that are settings, or belong to one call of ``learn()``."""
OF_ENVS = ("_last_", "env", "_vec_normalize_env", "observation_space", "action_space")
"""Prefixes of a model's attributes that are environments, or belong to the present episodes."""
STANDARD_BUFFER = frozenset(
    (
        *("observations", "actions", "rewards", "advantages", "returns", "episode_starts", "values", "log_probs"),
        *("action_masks", "mask_dims"),
        *("hidden_states_pi", "cell_states_pi", "hidden_states_vf", "cell_states_vf"),
        *("generator_ready", "seq_start_indices", "seq_end_indices", "pad", "pad_and_flatten"),
    )
)
"""What the rollout buffers of SB3 and sb3-contrib hold; the next rollout writes it again."""


def encode_run(model: OnPolicyAlgorithm, root: BaseCallback, baseline: Baseline) -> tuple[Encoded, dict[str, np.ndarray]]:
    """
    Encode a run between two iterations.

    :param model: the model
    :param root: the callback that calls all others
    :param baseline: what was there when ``learn()`` began
    :return: JSON, and arrays by path
    """
    settings = present_settings(model)
    unchanged = settings.keys() - {*changed_settings(settings, baseline)}
    encoder = Encoder(CODECS, file_paths=baseline.file_paths)
    shallow = encoder.empty(deep=False, file_paths=baseline.file_paths)
    encoded = {
        "env": encoder.encode(model.env, "env"),
        "lost": dict(encoder.unsupported),
        "reset_seed": _reset_seed(model),
        "model": encode_attributes(model, "model", encoder, _skipped_of(model) | unchanged),
        "left_out": sorted({path.split("/")[1] for path in encoder.unsupported if path.startswith("model/")}),
        "buffer": shallow.encode_attributes(model.rollout_buffer, "buffer", skip=STANDARD_BUFFER),
        "policy": shallow.encode(model.policy, "policy"),
        "optimizer": shallow.encode(model.policy.optimizer, "optimizer"),
        "cost_critics": [
            {"policy": shallow.encode(each, name), "optimizer": shallow.encode(each.optimizer, f"{name}/optimizer")}
            for name, each in cost_critics_of(model)
        ],
        "seconds": (time.time_ns() - model.start_time) / 1e9,
        "logger": encode_logger(model.logger, "logger", encoder),
        "callbacks": encode_callbacks(root, baseline, encoder),
        "generators": encode_global_generators(encoder),
    }
    return {**encoded, "changed_places": sorted(baseline.file_paths.changed)}, encoder.arrays | shallow.arrays


def restore_run(model: OnPolicyAlgorithm, root: BaseCallback, encoded: Encoded, arrays: dict[str, np.ndarray]) -> None:
    """
    Restore a run.

    :param model: a model that was made like the one that was encoded
    :param root: the callback that calls all others
    :param encoded: JSON from :func:`encode_run`
    :param arrays: arrays from there
    :raises MismatchError: if policy, optimizer or environments do not fit
    """
    decoder = Decoder(CODECS, arrays)
    decode_logger(encoded["logger"], model.logger, "logger", decoder, encoded["model"]["num_timesteps"])
    decoder.decode(encoded["env"], model.env, "env")
    failures = [*decoder.failures]
    restore_policy(model, encoded, decoder)
    decode_attributes(model, encoded["model"], "model", decoder, _skipped_of(model))
    decoder.decode_attributes(model.rollout_buffer, encoded["buffer"], "buffer", skip=STANDARD_BUFFER)
    model.start_time = time.time_ns() - int(1e9 * encoded["seconds"])
    decode_callbacks(root, encoded["callbacks"], decoder)
    for text in decoder.failures[len(failures) :]:
        warnings.warn(f"The state of a callback's environment does not fit, and it stays as it is: {text}", stacklevel=2)
    if failures:
        warnings.warn(
            f"The state of an environment does not fit the one that is there: {failures[0]}. The present episodes start "
            "again, from a recorded seed; everything else continues.",
            stacklevel=2,
        )
    if encoded["lost"] or failures:
        _restart_episodes(model, encoded["reset_seed"])
    decode_global_generators(encoded["generators"], decoder)  # last: anything above may draw from them


def restore_on_other_ranks(
    model: OnPolicyAlgorithm, root: BaseCallback, encoded: Encoded, arrays: dict[str, np.ndarray], communicator: Communicator
) -> None:
    """
    Restore a run of another number of ranks from its first rank's state, with new episodes and newly seeded generators.

    :param model: a model that was made like the one that was encoded
    :param root: the callback that calls all others
    :param encoded: JSON from :func:`encode_run`
    :param arrays: arrays from there
    :param communicator: connects the ranks that continue
    :raises MismatchError: if policy or optimizer do not fit
    """
    decoder = Decoder(CODECS, arrays)
    restore_policy(model, encoded, decoder)
    restore_statistics(model, encoded["env"], decoder)
    of_run = {name: value for name, value in encoded["model"].items() if not name.startswith(OF_ENVS)}
    decode_attributes(model, of_run, "model", decoder, _skipped_of(model))
    model.start_time = time.time_ns() - int(1e9 * encoded["seconds"])
    live = dict(named_callbacks(root))  # ranks other than the first need not have all
    decode_callbacks(root, {key: value for key, value in encoded["callbacks"].items() if key in live}, decoder)
    if communicator.is_first:
        decode_logger(encoded["logger"], model.logger, "logger", decoder, encoded["model"]["num_timesteps"])
    model.set_random_seed(encoded["reset_seed"])
    _restart_episodes(model, _seed_of_rank(encoded["reset_seed"], communicator))


def restore_policy(model: OnPolicyAlgorithm, encoded: Encoded, decoder: Decoder) -> None:
    """
    Restore a policy and its optimizer.

    :param model: the model
    :param encoded: JSON from :func:`encode_run`
    :param decoder: holds the arrays
    :raises MismatchError: if they do not fit
    """
    decoder.decode(encoded["policy"], model.policy, "policy")
    decoder.decode(encoded["optimizer"], model.policy.optimizer, "optimizer")
    for (name, critic), state in zip(cost_critics_of(model), encoded.get("cost_critics", ()), strict=True):
        decoder.decode(state["policy"], critic, name)
        decoder.decode(state["optimizer"], critic.optimizer, f"{name}/optimizer")


def cost_critics_of(model: OnPolicyAlgorithm) -> list[tuple[str, ActorCriticPolicy]]:
    """
    List the policies of a model of which only the critic is used.

    :param model: the model
    :return: names for paths, and the policies
    """
    return [(f"cost_critics/{index}", policy) for index, policy in enumerate(policies_of(model)[1:])]


def restore_statistics(model: OnPolicyAlgorithm, encoded_env: Encoded, decoder: Decoder) -> None:
    """
    Copy the running statistics of the run's ``VecNormalize`` to the model's.

    :param model: the model
    :param encoded_env: JSON of the environment from :func:`encode_run`
    :param decoder: holds the arrays
    :raises ValueError: if the run had a ``VecNormalize``, and the model's environment has none
    """
    live = model.get_vec_normalize_env()
    while encoded_env and encoded_env["vec_env"] != qualified_name(VecNormalize):
        encoded_env = encoded_env["state"].get("venv")
    if encoded_env is None:
        return
    if live is None:
        raise ValueError(
            "The run normalized its observations or rewards, but env is not wrapped in VecNormalize. Give "
            "VecNormalize(env, training=False, norm_reward=False): its statistics are filled in from the checkpoint."
        )
    statistics = {name: encoded_env["state"][name] for name in ("obs_rms", "ret_rms") if name in encoded_env["state"]}
    decoder.decode_attributes(live, statistics, "VecNormalize")


def explain_lost(lost: dict[str, str]) -> str | None:
    """
    Explain that environments cannot be restored.

    :param lost: class names of what cannot be encoded, by path
    :return: a warning that names the first of them; ``None`` if there are none
    """
    if not lost:
        return None
    path, name = next(iter(lost.items()))
    steps = [step for step in path.split("/") if step not in ("env", "venv") and not step.isdigit()]
    what = f"its attribute {steps[0]!r}, with a {name}," if steps else f"a {name}"  # it may be the env itself
    reason = f"the env {name}" if name == CANNOT_BE_CALLED else f"{what} is out of reach"
    return (
        f"The simulator's state cannot be saved: {reason}. After a restart the present episodes start again, from a recorded "
        "seed; everything else continues exactly. An env that has get_state() and set_state(state) can be restored."
    )


def explain_unrestorable(paths: list[str]) -> str | None:
    """
    Explain that the run has changed file paths that no checkpoint restores.

    :param paths: paths of the attributes that hold such file paths
    :return: a warning; ``None`` if there are none
    """
    if not paths:
        return None
    return (
        f"The run has changed a path that is absolute, goes up or is a pathlib object, {', '.join(paths[:3])}, and a "
        "checkpoint does not choose where files are: after a restart it is what the script makes it. If it is not a path, or "
        "matters for training, keep it in a list, or give its owner get_state() and set_state(state)."
    )


def _skipped_of(model: OnPolicyAlgorithm) -> frozenset[str]:
    return NOT_STATE.union(model._excluded_save_params())


def _reset_seed(model: OnPolicyAlgorithm) -> int:
    """Choose a seed for environments that cannot be restored, without drawing from a generator, which would change the run."""
    seed = int(hashlib.sha256(f"{model.seed} {model.num_timesteps}".encode()).hexdigest()[:7], 16)
    return _seed_of_rank(seed, getattr(model, "_communicator", ALONE))


def _seed_of_rank(seed: int, communicator: Communicator) -> int:
    own = seed_of_rank(seed, communicator)
    assert own is not None
    return own


def _restart_episodes(model: OnPolicyAlgorithm, seed: int) -> None:
    """Reset the environments; the statistics of observations stay those of the checkpoint."""
    assert model.env is not None, "a run has environments"
    normalizers = [layer for layer in layers_of(model.env) if isinstance(layer, VecNormalize) and layer.training]
    for layer in normalizers:
        layer.training = False
    model.env.seed(seed)
    model._last_obs = model.env.reset()  # type: ignore[assignment]  # a Tuple is no space of SB3's policies
    for layer in normalizers:
        layer.training = True
    model._last_episode_starts = np.ones(model.env.num_envs, dtype=bool)
    normalizer = model.get_vec_normalize_env()
    if normalizer is not None:
        model._last_original_obs = normalizer.get_original_obs()


def total_as_json(total: float) -> float | None:
    """
    Convert the total of a run to JSON, which has no infinity.

    :param total: timesteps at which the run ends
    :return: the same, or ``None`` for a run without end
    """
    return total if math.isfinite(total) else None


def describe_total(total: float | None) -> str:
    """
    Describe the total of a run.

    :param total: from :func:`total_as_json`
    :return: such as ``"512 timesteps"``
    """
    return "infinity" if total is None else f"{total:,} timesteps"


def describe_progress(n_timesteps: int, total: float) -> str:
    """
    Describe the progress of a run.

    :param n_timesteps: timesteps so far
    :param total: timesteps at which the run ends
    :return: such as ``"256 of 512 timesteps"``
    """
    return (
        f"{n_timesteps:,} of {total:,} timesteps"
        if math.isfinite(total)
        else f"{n_timesteps:,} timesteps of a run without end"
    )
