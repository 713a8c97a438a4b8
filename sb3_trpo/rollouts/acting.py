"""TODO."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from operator import itemgetter
from typing import Any, cast

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.utils import obs_as_tensor
from torch.utils.hooks import RemovableHandle

from sb3_trpo.distributions.floating_point import copy_quietly
from sb3_trpo.distributions.sampling import DRAWS, NAN_ADVICE
from sb3_trpo.networks.plain_network import Networks
from sb3_trpo.networks.preallocated import BoundPass
from sb3_trpo.numerics.torch_private import write_counts
from sb3_trpo.rollouts.environment import RolloutEnv
from sb3_trpo.rollouts.plain_spaces import Observation, map_parts
from sb3_trpo.rollouts.transitions import PASS_LIMITS, default_chunk_size
from sb3_trpo.rollouts.validation import cut_off_at, require_finite_end

CPU = th.device("cpu")


def _pairs(observations: Observation, buffer: RolloutBuffer) -> list[tuple[np.ndarray, np.ndarray]]:
    """Put each array of an observation beside the buffer's for it."""
    rows: Observation = buffer.observations
    if isinstance(observations, dict) and isinstance(rows, dict):
        return [(observations[key], kept) for key, kept in rows.items()]
    return [(cast("np.ndarray", observations), cast("np.ndarray", rows))]


class RolloutPolicy:
    """
    The policy while it collects: acts at each step, and computes afterwards what SB3's loop computes at each step.

    Log-probabilities are those of what the actor gave at each step. Values are computed by a copy of the critic; when someone
    changes the weights amid a rollout, it is noticed before the next action, and what was collected until then is settled.

    :param algorithm: whose policy it is
    :param networks: of the policy
    :param buffer: to be filled
    :param env: the training environments
    """

    def __init__(self, algorithm: OnPolicyAlgorithm, networks: Networks, buffer: RolloutBuffer, env: RolloutEnv) -> None:
        self._algorithm = algorithm
        self._action_dist = algorithm.policy.action_dist
        self._action_shape = (buffer.n_envs, *algorithm.policy.action_space.shape)  # type: ignore[misc]  # never a Dict
        self._networks = networks
        self._tensors = [*networks.policy_tensors, *networks.critic.tensors]
        self._buffer = buffer
        self._env = env
        self.restrictions: dict[str, Any] = {}
        self._outputs = np.empty((buffer.buffer_size, buffer.n_envs, len(networks.actor.layers[-1].weight)), np.float32)
        self._log_stds = np.empty((buffer.buffer_size, self._outputs.shape[2]), np.float32)
        self._keeps_float32 = networks.takes_vectors and buffer.observations.dtype == np.float32
        self._n_settled = 0
        self._n_optimizer_steps = 0
        self._hook: RemovableHandle | None = None
        self._cut_off: list[tuple[int, int, Any]] = []

    def __enter__(self) -> RolloutPolicy:
        """Get ready to act."""
        self._remember()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop counting the optimizer's steps."""
        if self._hook is not None:
            self._hook.remove()

    def _count_optimizer_step(self, *_: object) -> None:
        self._n_optimizer_steps += 1

    def _watch_optimizer(self) -> None:
        """Count the steps of the policy's optimizer: a fused one writes without a mark."""
        if self._hook is not None:
            self._hook.remove()
        self._optimizer = self._algorithm.policy.optimizer
        self._hook = self._optimizer.register_step_post_hook(self._count_optimizer_step)

    def _remember(self) -> None:
        """Copy the weights to the CPU; act on the policy's own where it lives there."""
        self._copy = self._networks.on_cpu()
        acting = self._networks if self._tensors[0].device == CPU else self._copy
        self._actor = BoundPass(acting.actor, self._buffer.n_envs, exact=True)
        self._input, self._output = self._actor.input.numpy(), self._actor.output.numpy()
        self._draw = DRAWS[type(self._action_dist)](self._action_dist, self._actor.output, acting.log_std)
        self._log_std = None if acting.log_std is None else acting.log_std.detach().numpy()
        self._watch_optimizer()
        self._marks = self._mark()

    def _mark(self) -> tuple[int, bool, list[int], list[int]]:
        """Give what changes with the weights: torch counts writes, and a tensor replaced lies elsewhere."""
        is_watched = self._algorithm.policy.optimizer is self._optimizer
        places = [*map(th.Tensor.data_ptr, self._tensors)]
        return self._n_optimizer_steps, is_watched, write_counts(self._tensors), places

    def _follow_changes(self) -> None:
        """Settle by the old weights what belongs to them; SB3 bootstraps the last step after the callback, by the new ones."""
        if self._mark() != self._marks:
            last = [cut for cut in self._cut_off if cut[0] == self._buffer.pos - 1]
            self._cut_off = self._cut_off[: len(self._cut_off) - len(last)]
            self._settle_values()
            self._remember()
            self._cut_off = last

    def act(self, observations: Observation, starts: np.ndarray | None) -> np.ndarray:
        """
        Draw an action for each environment, as SB3's distributions do from the same generator; keep what it was drawn for.

        :param observations: one per environment
        :param starts: whether each is the first one of an episode
        :return: the actions
        :raises ValueError: if the policy gives NaN
        """
        self._follow_changes()
        if self._networks.takes_vectors:
            vectors = cast("np.ndarray", observations)
            if vectors.shape != self._input.shape:  # copying might stretch it
                raise ValueError(f"observations have shape {vectors.shape}, not {self._input.shape}")
            copy_quietly(self._input, vectors, "same_kind")
        else:
            self._actor.input.copy_(self._networks.features(obs_as_tensor(observations, CPU)))
        self._actor.run()
        if math.isnan(np.vdot(self._output, self._output)):  # the quickest look at a few numbers
            raise ValueError(NAN_ADVICE)
        self.restrictions = self._restrict(self._output)
        self._step, self._observations, self._actions = self._buffer.pos, observations, self._draw()
        self._outputs[self._step] = self._output
        if self._log_std is not None:
            self._log_stds[self._step] = self._log_std
        self._keep(observations)
        self._buffer.episode_starts[self._step] = starts
        return self._actions.reshape(self._action_shape)

    def _keep(self, observations: Observation) -> None:
        """Write what the policy sees into the buffer, before the environments may overwrite it."""
        if self._networks.takes_vectors:
            self._buffer.observations[self._step] = self._input if self._keeps_float32 else observations
            return
        for seen, kept in _pairs(observations, self._buffer):
            copy_quietly(kept[self._step], seen.reshape(kept.shape[1:]))

    def _restrict(self, output: np.ndarray) -> dict[str, Any]:
        """Take options away from the actor's output, in place; give what callbacks shall know of it, by name."""
        return {}

    def await_bootstrap(self, ended: np.ndarray, infos: list[dict[str, Any]]) -> None:
        """
        Note the last observations of episodes that a time limit cut off.

        :param ended: indices of the environments whose episode ended
        :param infos: of all environments
        """
        for env_index in ended:
            last = cut_off_at(infos[env_index])
            if last is not None:
                require_finite_end(infos[env_index], int(env_index), self._buffer.pos)
                copied = copy.deepcopy(last)  # for the environment may overwrite it
                self._cut_off.append((self._buffer.pos, env_index, self._env.plain.encode(copied)))

    @th.no_grad()
    def values_at(self, observations: Observation) -> th.Tensor:
        """
        Compute values by the weights remembered.

        :param observations: stacked along the first dimension
        :return: shape ``(n, 1)``, on the CPU
        """
        return self._copy.critic(self._copy.features(obs_as_tensor(observations, CPU)))

    def current(self, name: str) -> th.Tensor:
        """
        Compute a quantity of the present step, for a callback that asks.

        :param name: ``obs_tensor``, ``values`` or ``log_probs``
        :return: as SB3's loop has it
        """
        if name == "obs_tensor":
            return cast("th.Tensor", obs_as_tensor(self._seen(), self._algorithm.device))
        if name == "values":
            return self.values_at(self._seen()).to(self._algorithm.device)
        return self._log_probs(slice(self._step, self._step + 1), self._actions).to(self._algorithm.device)

    def _seen(self) -> Observation:
        """Give the present observations as they were when the policy acted: the environments may have overwritten them."""
        seen, kept = self._observations, self._buffer.observations
        if isinstance(seen, dict):
            return {key: _as_laid_out(kept[key][self._step], part) for key, part in seen.items()}
        return _as_laid_out(kept[self._step], seen)

    def settle(self) -> None:
        """Fill in values, log-probabilities and bootstrapped rewards of all steps written since the last time."""
        self._follow_changes()
        self._settle_values()

    def _settle_values(self) -> None:
        buffer = self._buffer
        n_steps = max(1, default_chunk_size(buffer.observation_space, PASS_LIMITS) // buffer.n_envs)
        for start in range(self._n_settled, buffer.pos, n_steps):
            steps = slice(start, min(start + n_steps, buffer.pos))
            seen = map_parts(_joined, map_parts(itemgetter(steps), buffer.observations))
            buffer.values[steps] = self.values_at(seen).numpy().reshape(-1, buffer.n_envs)
            log_probs = self._log_probs(steps, _joined(buffer.actions[steps]))
            buffer.log_probs[steps] = log_probs.numpy().reshape(-1, buffer.n_envs)
        self._n_settled = buffer.pos
        if self._cut_off:
            steps_cut, envs_cut, last = zip(*self._cut_off, strict=True)
            values = self.values_at(_stacked(last, buffer))
            expected = self._algorithm.gamma * values.flatten()
            buffer.rewards[list(steps_cut), list(envs_cut)] += expected.numpy()
            self._cut_off.clear()

    @th.no_grad()
    def _log_probs(self, steps: slice, drawn: np.ndarray) -> th.Tensor:
        """Compute the log-probabilities of actions by what the actor gave at some steps."""
        output, actions = th.from_numpy(self._outputs[steps]).flatten(0, 1), th.from_numpy(drawn)
        if self._log_std is None:
            self._action_dist.proba_distribution(output)
        else:
            log_std = th.from_numpy(self._log_stds[steps]).repeat_interleave(self._buffer.n_envs, dim=0)
            self._action_dist.proba_distribution(output, log_std)
        single = isinstance(self._algorithm.policy.action_space, spaces.Discrete)
        return self._action_dist.log_prob(actions.flatten() if single else actions.float())


def _as_laid_out(row: np.ndarray, like: np.ndarray) -> np.ndarray:
    """Copy a buffer's row in the shape and type of what was written into it."""
    return row.reshape(like.shape).astype(like.dtype)


def _joined(rows: np.ndarray) -> np.ndarray:
    """Join step and environment."""
    return rows.reshape(-1, *rows.shape[2:])


def _stacked(observations: Sequence[Any], buffer: RolloutBuffer) -> Observation:
    """Stack single observations as the buffer holds them."""
    if isinstance(buffer.observations, dict):
        rows = {key: np.stack([each[key] for each in observations]) for key in buffer.observations}
        return {key: part.reshape(-1, *buffer.observations[key].shape[2:]) for key, part in rows.items()}
    return np.stack(observations).reshape(-1, *buffer.observations.shape[2:])
