"""
The fast loop, which collects a rollout with a policy that is a plain stack of layers.

It does what SB3's ``collect_rollouts`` does, in the same order and with the same random draws, but computes only actions at
each step. Values, log-probabilities and the values that bootstrap truncated episodes follow afterwards, all at once; see
:mod:`sb3_trpo.rollouts.collection.acting`. Whatever this loop does not know is left to SB3's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import repeat
from operator import contains
from typing import Any, cast

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy

from sb3_trpo.distributions.base import DistributionKind
from sb3_trpo.distributions.registry import CORE_KINDS
from sb3_trpo.networks.plain_network import is_patched
from sb3_trpo.rollouts.advantages import compute_advantages
from sb3_trpo.rollouts.collection.acting import Acting, ActingPolicy
from sb3_trpo.rollouts.collection.buffer_rows import array_pairs
from sb3_trpo.rollouts.collection.callback_locals import (
    LazyVariable,
    RolloutLocals,
    StartedCallback,
    may_change_things,
    share_locals,
)
from sb3_trpo.rollouts.collection.environment import RolloutEnv, collect_by, holds, widen_types
from sb3_trpo.rollouts.collection.stepping import Infos, Stepper
from sb3_trpo.rollouts.floating_point import HARMLESS, as_float32
from sb3_trpo.rollouts.validation import unfit_observation, unfit_weights

SET_AT_EACH_STEP = ("n_steps", "actions", "clipped_actions", "new_obs", "rewards", "dones")
"""Variables of SB3's loop that callbacks find as the present step has left them; ``infos`` are copied for them first."""
EPISODE_KEYS = repeat("episode")
"""Monitor's key for an ended episode, repeated so that ``map`` can pair it with the info of each environment."""
ActingPolicies = Mapping[type[RolloutBuffer], type[ActingPolicy]]
"""The class that acts, by the exact type of the buffer: a subclass of a known buffer may store something else."""
CORE_ACTING_POLICIES: ActingPolicies = {RolloutBuffer: ActingPolicy, DictRolloutBuffer: ActingPolicy}


class PresentStep:
    """The variables of SB3's loop that each step sets."""

    __slots__ = ("actions", "clipped_actions", "dones", "infos", "infos_are_copies", "n_steps", "new_obs", "rewards")

    n_steps: int
    actions: np.ndarray
    clipped_actions: np.ndarray
    new_obs: Any
    rewards: np.ndarray
    dones: np.ndarray
    infos: Infos
    infos_are_copies: bool

    def read_infos(self, stepper: Stepper) -> Infos:
        """
        Copy the infos, once in a step: callbacks may write to them, and the loop reads what they have written.

        :param stepper: made the step
        :return: the copies
        """
        if not self.infos_are_copies:
            self.infos, self.infos_are_copies = stepper.copy_of(self.infos), True
        return self.infos


@dataclass(frozen=True)
class FastCollector:
    """
    The loop, ready for one rollout.

    :param algorithm: the algorithm; its policy acts, and its counters advance
    :param env: the training environments
    :param buffer: the rollout buffer to fill
    :param acting_policies: the class that acts, by type of buffer
    :param kinds: known kinds of distributions
    """

    algorithm: OnPolicyAlgorithm
    env: RolloutEnv
    buffer: RolloutBuffer
    acting_policies: ActingPolicies
    kinds: Sequence[DistributionKind] = CORE_KINDS

    def prepare(self, n_rollout_steps: int) -> Acting | None:
        """
        Read the policy, if this loop would fill the buffer as SB3's would.

        :param n_rollout_steps: number of steps per environment to collect
        :return: what acts for the policy; ``None`` if policy, buffer, spaces or observations are of an unknown kind
        """
        return self._read() if n_rollout_steps == self.buffer.buffer_size else None

    def _read(self) -> Acting | None:
        buffer, actions = self.buffer, self.buffer.actions
        if type(buffer) not in self.acting_policies or is_patched(buffer):
            return None
        acting = self.acting_policies[type(buffer)].read(self.algorithm.policy, self.kinds)
        if acting is None:
            return None
        if isinstance(self.algorithm.policy.action_space, spaces.Box) and not np.can_cast(np.float32, actions.dtype):
            return None  # late log-probabilities are those of the actions in the buffer, which would be rounded
        observations = self.env.plain.encode(self.algorithm._last_obs)
        fits = all(holds(rows.dtype, seen.dtype) for seen, rows in array_pairs(observations, buffer))
        return acting if fits else None

    def collect(self, acting: Acting, callback: BaseCallback, general_loop: Callable[..., bool]) -> tuple[bool, bool]:
        """
        Fill the buffer.

        :param acting: the result of :meth:`prepare`
        :param callback: called at each step
        :param general_loop: SB3's loop, used if the callback changes something to an unknown kind when the rollout starts
        :return: whether the rollout is complete, rather than ended by the callback; and whether this loop has collected it
        :raises ValueError: if the policy returns NaN
        """
        algorithm, buffer = self.algorithm, self.buffer
        algorithm.policy.set_training_mode(False)
        buffer.reset()
        if algorithm.use_sde:
            algorithm.policy.reset_noise(buffer.n_envs)
        share_locals(callback, RolloutLocals(callback.locals))  # only such a dict can hold variables that are computed late
        callback.on_rollout_start()
        if may_change_things(callback):  # it may have altered the policy or reset the environments
            present = self._read()
            if present is None:
                return general_loop(self.env, StartedCallback(callback), buffer, buffer.buffer_size), False
            acting = present
        with acting(algorithm, buffer, self.env) as policy:
            is_complete = self._fill(callback, policy)
            policy.complete()  # also the steps before a callback's end: SB3's loop has completed them by then
            if is_complete:
                last_values = policy.last_values()
                last_dones = cast("np.ndarray", algorithm._last_episode_starts)
                compute_advantages(buffer, last_values.numpy().flatten(), last_dones)
                callback.update_locals(policy.variables_at_end(last_values))
                callback.on_rollout_end()
        return is_complete, True

    def _fill(self, callback: BaseCallback, policy: ActingPolicy) -> bool:
        """Step until the buffer is full or the callback ends the rollout; return whether it is full."""
        algorithm, env, buffer = self.algorithm, self.env, self.buffer
        now, stepper = PresentStep(), Stepper(env.venv)
        known = RolloutLocals({"self": algorithm, "env": env.venv, "callback": callback, "rollout_buffer": buffer})
        known.update({name: LazyVariable(policy.late_variable, name) for name in policy.late_names})
        known.update({name: LazyVariable(getattr, now, name) for name in SET_AT_EACH_STEP})
        known.update(n_rollout_steps=buffer.buffer_size, infos=LazyVariable(now.read_infos, stepper))
        is_watched, is_known = may_change_things(callback), False
        is_noise_renewed = algorithm.use_sde and algorithm.sde_sample_freq > 0
        while buffer.pos < buffer.buffer_size:
            if is_watched:
                policy.follow_changes()
            if is_noise_renewed and buffer.pos % algorithm.sde_sample_freq == 0:
                algorithm.policy.reset_noise(buffer.n_envs)
            now.n_steps = buffer.pos
            now.actions = policy.act(env.plain.encode(algorithm._last_obs), algorithm._last_episode_starts)
            now.clipped_actions = _within_bounds(now.actions, algorithm.policy)
            now.new_obs, now.rewards, now.dones, now.infos = stepper.step(
                env.plain.decode(now.clipped_actions), meanwhile=policy.record
            )
            now.infos_are_copies = False
            if env.observe is not None:
                env.observe(now.infos, now.dones)
            algorithm.num_timesteps += buffer.n_envs  # before the callback, which reads it
            if is_watched or policy.extra_locals or not is_known:  # others see what changes through what they have been given
                known.update(policy.extra_locals)
                callback.update_locals(known)
                is_known = True
            if not callback.on_step():
                callback.update_locals(policy.late_variables())  # not late any more, as below
                policy.forget_step()
                return False

            # Most steps end no episode. NumPy's any() takes five times as long as count_nonzero(), and map() looks into infos
            # without running Python code for each environment.
            if np.count_nonzero(now.dones) or any(map(contains, now.infos, EPISODE_KEYS)):
                self._note_ends(now, stepper, policy)
            _write_step(buffer, now.actions, now.rewards)
            algorithm._last_obs, algorithm._last_episode_starts = now.new_obs, now.dones
        # The buffer changes from now on, and late variables would keep the policy's arrays in memory as long as the callbacks.
        callback.update_locals(policy.late_variables())
        return True

    def _note_ends(self, now: PresentStep, stepper: Stepper, policy: ActingPolicy) -> None:
        """Record the episodes that the present step has ended, and those that an environment reports without an end."""
        infos, dones = now.read_infos(stepper), now.dones
        reports = np.flatnonzero(np.logical_or(dones, [*map(contains, infos, EPISODE_KEYS)]))
        self.algorithm._update_info_buffer([infos[env_index] for env_index in reports], dones[reports])
        policy.note_truncated(np.flatnonzero(dones), infos)


def collect(
    collector: FastCollector, callback: BaseCallback, n_rollout_steps: int, loop: Callable[..., bool]
) -> tuple[bool, bool]:
    """
    Fill a buffer by the fast loop if it knows the policy and the buffer, else by another one.

    :param collector: the fast loop
    :param callback: called at each step
    :param n_rollout_steps: steps per environment
    :param loop: ``collect_rollouts`` of an algorithm, which takes any policy
    :return: whether the rollout is complete, rather than ended by the callback; and whether the fast loop has collected it
    :raises ValueError: if the policy cannot act on an observation, because it is not finite or has another shape
    """
    algorithm, env, buffer = collector.algorithm, collector.env, collector.buffer
    assert algorithm._last_obs is not None, "SB3 resets the environments before it collects"
    general = partial(collect_by, loop, algorithm)
    try:
        widen_types(buffer, env.plain.encode(algorithm._last_obs))
        acting = collector.prepare(n_rollout_steps)
        if acting is not None:
            return collector.collect(acting, callback, general)
        return general(env, callback, buffer, n_rollout_steps), False
    except (TypeError, ValueError, RuntimeError):
        fault = unfit_observation(algorithm._last_obs, algorithm.observation_space, algorithm.n_envs, buffer.pos)
        fault = fault or unfit_weights(algorithm.policy)
        if fault is None:
            raise
        raise fault from None  # a traceback from inside torch would explain less


def _within_bounds(actions: np.ndarray, policy: ActorCriticPolicy) -> np.ndarray:
    """
    Clip actions to a Box, since a Gaussian has no bounds, or scale squashed ones to it.

    ``np.clip`` takes five times as long for a few numbers.
    """
    space = policy.action_space
    if not isinstance(space, spaces.Box):
        return actions
    return policy.unscale_action(actions) if policy.squash_output else np.minimum(np.maximum(actions, space.low), space.high)


def _write_step(buffer: RolloutBuffer, actions: np.ndarray, rewards: np.ndarray) -> None:
    """Write actions and rewards, after the callback, which may change both in place. Observations are there already."""
    buffer.actions[buffer.pos] = actions.reshape(buffer.actions.shape[1:])
    try:
        buffer.rewards[buffer.pos] = rewards
    except HARMLESS:
        buffer.rewards[buffer.pos] = as_float32(np.asarray(rewards))
    buffer.pos += 1
    buffer.full = buffer.pos == buffer.buffer_size
