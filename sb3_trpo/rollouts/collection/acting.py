"""
The policy in the fast loop: it computes actions at each step, and everything else afterwards.

SB3's loop computes values and log-probabilities at each step, one row per environment. Nothing reads them before the rollout
is complete, and computing them for all rows at once takes a fraction of the time. So a step only records what the policy saw
and what its actor returned.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from operator import itemgetter
from typing import Any, ClassVar, cast

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.utils import obs_as_tensor

from sb3_trpo.distributions.base import NAN_ADVICE, DistributionKind
from sb3_trpo.networks.plain_network import Networks, read_networks
from sb3_trpo.networks.stack import Stack
from sb3_trpo.networks.weight_watch import WeightWatch
from sb3_trpo.rollouts.collection.buffer_rows import ChangingArray, array_pairs, arrays_of, merged, restored, stacked
from sb3_trpo.rollouts.collection.environment import RolloutEnv
from sb3_trpo.rollouts.collection.step_actor import CPU, ImageActor, Prepared, VectorActor, row_runner, step_actor
from sb3_trpo.rollouts.collection.truncation import TruncatedEpisode, truncated_episodes
from sb3_trpo.rollouts.floating_point import copy_quietly, quietly_if_needed
from sb3_trpo.rollouts.plain_spaces import Observation, map_parts
from sb3_trpo.rollouts.transitions import PASS_LIMITS, default_chunk_size

Acting = Callable[[OnPolicyAlgorithm, RolloutBuffer, RolloutEnv], "ActingPolicy"]
"""Makes what acts for one policy, whose networks have been read, in a rollout."""


class ActingPolicy:
    """
    A plain policy that acts in a rollout and completes the buffer afterwards.

    It is a context manager: it watches the weights until it is left.

    :param networks: the policy's networks
    :param algorithm: the algorithm, for its policy, discount factor and device
    :param buffer: the rollout buffer to fill
    :param env: the training environments
    """

    late_names: ClassVar[tuple[str, ...]] = ("obs_tensor", "values", "log_probs")
    """Variables of SB3's loop that are computed only if a callback reads them, which few do."""

    def __init__(self, networks: Networks, algorithm: OnPolicyAlgorithm, buffer: RolloutBuffer, env: RolloutEnv) -> None:
        self._algorithm = algorithm
        self._networks = networks
        self._buffer = buffer
        self._env = env
        self._watch = WeightWatch(algorithm.policy, self._weights())
        self._action_shape = (buffer.n_envs, *algorithm.policy.action_space.shape)  # type: ignore[misc]  # never a Dict
        # What the actor returned at each step, and the parameters of its distribution that no network computes (log_std): the
        # log-probabilities are computed from these, without evaluating the actor again. A callback may change them meanwhile.
        n_steps, n_outputs = buffer.buffer_size, networks.actor.n_outputs
        self._outputs = np.empty((n_steps, buffer.n_envs, n_outputs), np.float32)
        self._head_parameters = [ChangingArray() for _ in networks.head.parameters]
        self._device = algorithm.device if networks.of_images else CPU  # small networks would wait for another device
        self._shared: np.ndarray | None = None
        self._n_complete = 0
        self._truncated: list[TruncatedEpisode] = []
        self.extra_locals: dict[str, Any] = {}
        """Variables of the present step for callbacks, in addition to those of SB3's loop."""

    @classmethod
    def read(cls, policy: ActorCriticPolicy, kinds: Sequence[DistributionKind]) -> Acting | None:
        """
        Read a policy's networks.

        :param policy: the policy
        :param kinds: known kinds of distributions
        :return: makes an instance for them; ``None`` if this class cannot act for the policy
        """
        networks = read_networks(policy, kinds)
        return None if networks is None else partial(cls, networks)

    def _weights(self) -> list[th.Tensor]:
        """List everything that actions and values depend on."""
        return [*self._networks.policy_tensors, *self._networks.critic.tensors]

    def __enter__(self) -> ActingPolicy:
        """Get ready to act."""
        self._follow_weights()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop watching the weights."""
        self._watch.stop()

    def _follow_weights(self) -> None:
        """
        Use the present weights from now on.

        Values are computed later, so they need a copy: by then a callback may have changed the weights. Actions are computed
        at once. So on its own device the actor can use the policy's tensors: it follows even changes that the watch misses.
        """
        self._copy = self._networks.copied_to(self._device)
        acting = self._networks if self._networks.actor.tensors[0].device == self._device else self._copy
        self._actor = step_actor(acting, self._buffer.n_envs, self._runner)
        head = acting.head.with_parameters([tensor.to(CPU) for tensor in acting.head.parameters])
        self._sampler = head.sampler(th.from_numpy(self._actor.output))
        present = [tensor.detach().numpy() for tensor in head.parameters]
        self._head_pairs = list(zip(self._head_parameters, present, strict=True))
        self._watch.start()

    def _runner(self, actor: Stack) -> Prepared:
        """Make what runs a dense actor on one row per environment; return it with its input and its output."""
        return row_runner(actor, self._buffer.n_envs)

    def follow_changes(self) -> None:
        """
        If the weights have changed, complete the steps so far by the old ones.

        An episode truncated at the last step is left for later: SB3 computes its bootstrapped value after the callback, hence
        by the new weights.
        """
        if self._watch.has_changed():
            last = [episode for episode in self._truncated if episode.step == self._buffer.pos - 1]
            self._truncated = self._truncated[: len(self._truncated) - len(last)]
            self._complete_steps()
            self._follow_weights()
            self._truncated = last

    def act(self, observations: Observation, starts: np.ndarray | None) -> np.ndarray:
        """
        Sample an action for each environment. :meth:`record` then has to be called before the environments step.

        :param observations: plain observations, shape ``(n_envs, ...)`` or a dict of such arrays
        :param starts: whether each is the first observation of an episode, shape ``(n_envs,)``
        :return: the actions, not clipped, shape ``(n_envs, *action_shape)``
        :raises ValueError: if the policy returns NaN
        """
        self._actor(observations)
        output = self._actor.output
        if math.isnan(np.vdot(output, output)):  # one NaN makes it NaN; the fastest check of a few numbers
            raise ValueError(NAN_ADVICE)
        self.extra_locals = self._mask(output)
        self._sampler.draw()
        self._actions = quietly_if_needed(self._sampler.actions).reshape(self._action_shape)
        self._step, self._observations, self._starts = self._buffer.pos, observations, starts
        return self._actions

    def record(self) -> None:
        """Keep what the policy saw and what its actor returned, before the environments overwrite their arrays."""
        self._outputs[self._step] = self._actor.output
        for values, present in self._head_pairs:
            values.note(self._step, present)
        self._write_observations(self._observations)
        if isinstance(self._actor, ImageActor):
            self._keep_shared(self._actor.shared)
        self._buffer.episode_starts[self._step] = self._starts

    def _keep_shared(self, shared: np.ndarray | None) -> None:
        """Keep what layers that are also the critic's have computed, so that they need not compute it again for the values."""
        if shared is None:
            return
        if self._shared is None:
            self._shared = np.empty((self._buffer.buffer_size, *shared.shape), np.float32)
        self._shared[self._step] = shared

    def _mask(self, output: np.ndarray) -> dict[str, Any]:
        """Forbid actions by changing the actor's output in place; return variables for callbacks. Here, forbid nothing."""
        return {}

    def _write_observations(self, observations: Observation) -> None:
        """Write what the policy sees into the buffer before the environments step: they may overwrite their arrays."""
        if isinstance(self._actor, VectorActor):  # its input has been converted to float32 already
            rows = self._buffer.observations
            rows[self._step] = self._actor.input if rows.dtype == np.float32 else observations
            return
        for seen, rows in array_pairs(observations, self._buffer):
            copy_quietly(rows[self._step], seen.reshape(rows.shape[1:]))

    def note_truncated(self, ended: np.ndarray, infos: list[dict[str, Any]]) -> None:
        """
        Note the last observations of episodes that a time limit cut off. Their values are computed with all others.

        :param ended: indices of the environments where an episode ended at the present step
        :param infos: the step's info dicts, one per environment
        :raises ValueError: if such an observation is not finite
        """
        self._truncated += truncated_episodes(self._buffer.pos, ended, infos, self._env.plain)

    @th.no_grad()
    def values_at(self, observations: Observation) -> th.Tensor:
        """
        Compute values by the copy of the critic.

        :param observations: n plain observations, stacked along the first dimension
        :return: the values, shape ``(n, 1)``, on the CPU
        """
        return self._copy.critic(self._copy.features(obs_as_tensor(observations, self._device))).cpu()

    def last_values(self) -> th.Tensor:
        """Compute the values of the observations after the last step, shape ``(n_envs, 1)``, on the CPU."""
        return self.values_at(self._env.plain.encode(self._algorithm._last_obs))

    def variables_at_end(self, last_values: th.Tensor) -> dict[str, Any]:
        """
        Tell what the loop's variables are when the rollout is complete.

        :param last_values: the result of :meth:`last_values`
        :return: those that callbacks find changed since the last step, by name
        """
        return {"values": last_values.to(self._algorithm.device), "n_steps": self._buffer.pos}

    def late_variables(self) -> dict[str, Any]:
        """Compute all variables of :attr:`late_names` at the present step."""
        return {name: self.late_variable(name) for name in self.late_names}

    def late_variable(self, name: str) -> Any:
        """
        Compute a variable of the present step, for a callback that asks for it.

        :param name: one of :attr:`late_names`
        :return: what SB3's loop has under this name, on the algorithm's device
        """
        if name == "obs_tensor":
            return cast("th.Tensor", obs_as_tensor(self._present_observations(), self._algorithm.device))
        if name == "values":
            return self._present_values().to(self._algorithm.device)
        actions = self._actions.reshape(self._buffer.n_envs, -1)
        return self._log_probs(slice(self._step, self._step + 1), actions).to(self._algorithm.device)

    def _present_values(self) -> th.Tensor:
        return self.values_at(self._present_observations())

    def _present_observations(self) -> Observation:
        """Read what the policy acted on from the buffer: by now the environments may have overwritten their own arrays."""
        original, rows = self._observations, self._buffer.observations
        if isinstance(original, dict):
            return {key: restored(rows[key][self._step], part) for key, part in original.items()}
        return restored(rows[self._step], original)

    def forget_step(self) -> None:
        """Erase what was written at the present step, which a callback has ended: SB3's loop writes after the callback."""
        for rows in arrays_of(self._buffer.observations):
            rows[self._buffer.pos] = 0
        self._buffer.episode_starts[self._buffer.pos] = 0.0

    def complete(self) -> None:
        """Fill in the values, log-probabilities and bootstrapped rewards of all steps that lack them."""
        self.follow_changes()
        self._complete_steps()

    def _complete_steps(self) -> None:
        """Complete steps by the copy of the weights, some at a time to bound memory."""
        buffer = self._buffer
        n_steps = max(1, default_chunk_size(buffer.observation_space, PASS_LIMITS) // buffer.n_envs)
        for start in range(self._n_complete, buffer.pos, n_steps):
            steps = slice(start, min(start + n_steps, buffer.pos))
            self._write_values(steps)
            log_probs = self._log_probs(steps, merged(buffer.actions[steps]))
            buffer.log_probs[steps] = log_probs.numpy().reshape(-1, buffer.n_envs)
        self._n_complete = buffer.pos
        if self._truncated:
            steps_cut, envs_cut, last = zip(*self._truncated, strict=True)
            values = self._values_after(list(steps_cut), list(envs_cut), stacked(last, buffer))
            bootstrapped = self._algorithm.gamma * values.flatten()
            buffer.rewards[list(steps_cut), list(envs_cut)] += bootstrapped.numpy()
            self._truncated.clear()

    def _seen(self, steps: slice) -> Observation:
        """Read what the policy saw at some steps, step after step."""
        return map_parts(merged, map_parts(itemgetter(steps), self._buffer.observations))

    def _write_values(self, steps: slice) -> None:
        """Compute the values at some steps, the next ones that lack them."""
        self._buffer.values[steps] = self._values_of(steps).numpy().reshape(-1, self._buffer.n_envs)

    @th.no_grad()
    def _values_of(self, steps: slice) -> th.Tensor:
        if self._shared is None:
            return self.values_at(self._seen(steps))
        _, rest = self._copy.critic.split(self._networks.n_shared_layers)
        return rest(th.from_numpy(merged(self._shared[steps])).to(self._device)).cpu()

    def _values_after(self, steps: list[int], envs: list[int], observations: Observation) -> th.Tensor:
        """Compute the values of observations that followed some steps of some environments."""
        return self.values_at(observations)

    @th.no_grad()
    def _log_probs(self, steps: slice, actions: np.ndarray) -> th.Tensor:
        """Compute log-probabilities of actions, shape ``(n, n_dimensions)``, from what the actor returned at some steps."""
        output, chosen = th.from_numpy(self._outputs[steps]).flatten(0, 1), th.from_numpy(actions)
        parameters = [values.per_state(steps, self._buffer.n_envs) for values in self._head_parameters]
        distribution = self._networks.head.with_parameters(parameters).distribution(output)
        is_discrete = isinstance(self._algorithm.policy.action_space, spaces.Discrete)
        return distribution.log_prob(chosen.flatten() if is_discrete else chosen.float())
