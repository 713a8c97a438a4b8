"""
Collecting a rollout with a policy that is a plain stack of layers.

What SB3's loop does, in its order and with its random draws, but only actions are computed at each step. Values,
log-probabilities and what episodes cut off by a time limit had yet to expect follow afterwards, all at once.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import repeat
from operator import contains
from typing import Any, cast

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from sb3_trpo.distributions.floating_point import SPURIOUS, as_float32
from sb3_trpo.networks.plain_network import Networks, is_patched, read_networks
from sb3_trpo.rollouts.acting import RolloutPolicy, _pairs
from sb3_trpo.rollouts.advantages import compute_advantages
from sb3_trpo.rollouts.callback_locals import Deferred, SharedLocals, StartedCallback, share_locals
from sb3_trpo.rollouts.environment import RolloutEnv, holds
from sb3_trpo.rollouts.plain_spaces import Observation

LATE = ("obs_tensor", "values", "log_probs")
"""What callbacks find in their ``locals`` in SB3's loop, and seldom look at."""
EPISODES = repeat("episode")
"""The key of an episode's statistics, as often as there are environments."""


def can_collect(
    observations: Observation, action_space: spaces.Space[Any], networks: Networks, buffer: RolloutBuffer, n_rollout_steps: int
) -> bool:
    """
    Tell whether :func:`collect` fills the buffer as SB3's loop would.

    :param observations: the last ones, of the plain space
    :param action_space: of the policy
    :param networks: of the policy
    :param buffer: to be filled
    :param n_rollout_steps: steps per environment
    :return: whether buffer, action space and observations are of the kinds that it knows
    """
    rounds_actions = isinstance(action_space, spaces.Box) and not np.can_cast(np.float32, buffer.actions.dtype)
    return (
        type(buffer) in ROLLOUT_POLICIES
        and n_rollout_steps == buffer.buffer_size
        and not rounds_actions  # log-probabilities are those of the actions as they were drawn
        and not networks.of_images
        and not is_patched(buffer)
        and all(holds(kept.dtype, seen.dtype) for seen, kept in _pairs(observations, buffer))
    )


def collect(
    algorithm: OnPolicyAlgorithm,
    env: RolloutEnv,
    callback: BaseCallback,
    buffer: RolloutBuffer,
    general_loop: Callable[..., bool],
) -> bool:
    """
    Fill the buffer, where :func:`can_collect` allows it.

    :param algorithm: whose policy acts, and whose counters go on
    :param env: the training environments
    :param callback: called at each step
    :param buffer: what to fill
    :param general_loop: SB3's, for a callback may alter the policy when the rollout starts
    :return: whether the rollout is complete, rather than ended by the callback
    :raises ValueError: if the policy gives NaN
    """
    algorithm.policy.set_training_mode(False)
    buffer.reset()
    share_locals(callback, SharedLocals(callback.locals))
    callback.on_rollout_start()
    networks, action_space = read_networks(algorithm.policy), algorithm.policy.action_space
    observations = env.plain.encode(algorithm._last_obs)
    if networks is None or not can_collect(observations, action_space, networks, buffer, buffer.buffer_size):
        return general_loop(env, StartedCallback(callback), buffer, buffer.buffer_size)
    with ROLLOUT_POLICIES[type(buffer)](algorithm, networks, buffer, env) as policy:
        is_complete = _fill(algorithm, env, callback, buffer, policy)
        policy.settle()
        if is_complete:
            last_values = policy.values_at(env.plain.encode(algorithm._last_obs))
            last_dones = cast("np.ndarray", algorithm._last_episode_starts)
            compute_advantages(buffer, last_values.numpy().flatten(), last_dones)
            callback.update_locals({"values": last_values.to(algorithm.device), "n_steps": buffer.pos})
            callback.on_rollout_end()
    return is_complete


def _fill(
    algorithm: OnPolicyAlgorithm, env: RolloutEnv, callback: BaseCallback, buffer: RolloutBuffer, policy: RolloutPolicy
) -> bool:
    """Step until the buffer is full, or the callback ends it."""
    known = SharedLocals({"self": algorithm, "env": env.venv, "callback": callback, "rollout_buffer": buffer})
    known.update({"n_rollout_steps": buffer.buffer_size, **{name: Deferred(policy.current, name) for name in LATE}})
    while buffer.pos < buffer.buffer_size:
        actions = policy.act(env.plain.encode(algorithm._last_obs), algorithm._last_episode_starts)
        clipped_actions = _clip(actions, algorithm.policy.action_space)
        stepped: Any = env.venv.step(env.plain.decode(clipped_actions))
        new_obs, rewards, dones, infos = stepped
        algorithm.num_timesteps += buffer.n_envs

        step = {"n_steps": buffer.pos, "actions": actions, "clipped_actions": clipped_actions, **policy.restrictions}
        known.update(step, new_obs=new_obs, rewards=rewards, dones=dones, infos=infos)
        callback.update_locals(known)
        if not callback.on_step():
            _forget_seen(buffer)
            return False

        if dones.any() or any(map(contains, infos, EPISODES)):  # no Python code for each of many environments
            telling = np.flatnonzero(np.logical_or(dones, [*map(contains, infos, EPISODES)]))
            algorithm._update_info_buffer([infos[env_index] for env_index in telling], dones[telling])
            policy.await_bootstrap(np.flatnonzero(dones), infos)
        _write_step(buffer, actions, rewards)
        algorithm._last_obs, algorithm._last_episode_starts = new_obs, dones
    return True


def _clip(actions: np.ndarray, space: spaces.Space[Any]) -> np.ndarray:
    """Bring actions of a Gaussian, which knows no bounds, into a Box; ``np.clip`` would take five times as long on a few."""
    return np.minimum(np.maximum(actions, space.low), space.high) if isinstance(space, spaces.Box) else actions


def _forget_seen(buffer: RolloutBuffer) -> None:
    """Leave a step that a callback ended out of the buffer, as SB3's loop does."""
    for kept in [*buffer.observations.values()] if isinstance(buffer.observations, dict) else [buffer.observations]:
        kept[buffer.pos] = 0
    buffer.episode_starts[buffer.pos] = 0.0


def _write_step(buffer: RolloutBuffer, actions: np.ndarray, rewards: np.ndarray) -> None:
    """Write what came of a step into the buffer."""
    buffer.actions[buffer.pos] = actions.reshape(buffer.actions.shape[1:])
    try:
        buffer.rewards[buffer.pos] = rewards
    except SPURIOUS:
        buffer.rewards[buffer.pos] = as_float32(np.asarray(rewards))
    buffer.pos += 1
    buffer.full = buffer.pos == buffer.buffer_size


ROLLOUT_POLICIES: dict[type[RolloutBuffer], type[RolloutPolicy]] = {
    RolloutBuffer: RolloutPolicy,
    DictRolloutBuffer: RolloutPolicy,
}
"""By exact type of buffer: a subclass may keep anything."""
