"""
Collecting a rollout with a policy that is a plain stack of layers.

What SB3's loop does, in its order and with its random draws, but only actions are computed at each step. Values,
log-probabilities and what episodes cut off by a time limit had yet to expect follow afterwards, all at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from operator import attrgetter
from typing import Any, cast

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.distributions import (
    BernoulliDistribution,
    CategoricalDistribution,
    DiagGaussianDistribution,
    Distribution,
    MultiCategoricalDistribution,
)
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.type_aliases import PyTorchObs
from stable_baselines3.common.utils import obs_as_tensor
from stable_baselines3.common.vec_env import VecEnv

from sb3_trpo.networks import Networks
from sb3_trpo.passes import BoundPass
from sb3_trpo.rollout import Observation, compute_advantages

LATE_ROWS = 2**13
"""Transitions whose values are computed at a time: their activations stay in a processor's cache."""
CPU = th.device("cpu")
LATE = ("obs_tensor", "values", "log_probs")
"""What callbacks find in their ``locals`` in SB3's loop, and seldom look at."""
_VERSION = attrgetter("_version")


def can_collect(algorithm: OnPolicyAlgorithm, networks: Networks, buffer: RolloutBuffer, n_rollout_steps: int) -> bool:
    """
    Tell whether :func:`collect` fills the buffer as SB3's loop would.

    :param algorithm: about to collect
    :param networks: of its policy
    :param buffer: to be filled
    :param n_rollout_steps: steps per environment
    :return: whether buffer, action space and observations are of the kinds that it knows
    """
    fractional = isinstance(algorithm.action_space, spaces.Box) and not np.issubdtype(
        algorithm.action_space.dtype, np.floating
    )
    assert algorithm._last_obs is not None, "SB3 resets the environments before it collects"
    return (
        type(buffer) in (RolloutBuffer, DictRolloutBuffer)
        and n_rollout_steps == buffer.buffer_size
        and not fractional  # the buffer would round the actions whose probabilities are wanted
        and not networks.of_images
        and all(np.can_cast(seen.dtype, kept.dtype, "same_kind") for seen, kept in _pairs(algorithm._last_obs, buffer))
    )


def collect(
    algorithm: OnPolicyAlgorithm, env: VecEnv, callback: BaseCallback, buffer: RolloutBuffer, networks: Networks
) -> bool:
    """
    Fill the buffer.

    :param algorithm: whose policy acts, and whose counters go on
    :param env: the training environments
    :param callback: called at each step
    :param buffer: what to fill
    :param networks: of the policy
    :return: whether the rollout is complete, rather than ended by the callback
    :raises ValueError: if the policy gives NaN
    """
    algorithm.policy.set_training_mode(False)
    buffer.reset()
    policy = RolloutPolicy(algorithm, networks, buffer)
    share_locals(callback, SharedLocals(callback.locals, policy))
    known: dict[str, Any] = {"self": algorithm, "env": env, "callback": callback, "rollout_buffer": buffer}
    known["n_rollout_steps"] = buffer.buffer_size
    callback.on_rollout_start()

    while buffer.pos < buffer.buffer_size:
        observations = cast("Observation", algorithm._last_obs)
        actions = policy.act(observations)
        clipped_actions = _clip(actions, algorithm.action_space)
        new_obs, rewards, dones, infos = env.step(clipped_actions)
        algorithm.num_timesteps += env.num_envs

        known |= {"n_steps": buffer.pos, "actions": actions, "clipped_actions": clipped_actions}
        known |= {"new_obs": new_obs, "rewards": rewards, "dones": dones, "infos": infos}
        callback.update_locals(known)
        if not callback.on_step():
            policy.settle()
            return False

        if dones.any():
            ended = np.flatnonzero(dones)
            algorithm._update_info_buffer([infos[env_index] for env_index in ended], dones[ended])
            policy.await_bootstrap(ended, infos)
        _write_step(buffer, observations, actions, rewards, algorithm._last_episode_starts)
        algorithm._last_obs, algorithm._last_episode_starts = cast("Observation", new_obs), dones

    policy.settle()
    last_values = policy.values_at(cast("Observation", new_obs))
    compute_advantages(buffer, last_values.numpy().flatten(), dones)
    callback.update_locals({"values": last_values.to(algorithm.device), "n_steps": buffer.pos})
    callback.on_rollout_end()
    return True


def _clip(actions: np.ndarray, space: spaces.Space[Any]) -> np.ndarray:
    """Bring actions of a Gaussian, which knows no bounds, into a Box; ``np.clip`` would take five times as long on a few."""
    return np.minimum(np.maximum(actions, space.low), space.high) if isinstance(space, spaces.Box) else actions


def _write_step(
    buffer: RolloutBuffer, observations: Observation, actions: np.ndarray, rewards: np.ndarray, starts: np.ndarray | None
) -> None:
    """Write what is known of one step into the buffer."""
    for seen, kept in _pairs(observations, buffer):
        kept[buffer.pos] = seen.reshape(kept.shape[1:])
    buffer.actions[buffer.pos] = actions.reshape(buffer.actions.shape[1:])
    buffer.rewards[buffer.pos] = rewards
    buffer.episode_starts[buffer.pos] = starts
    buffer.pos += 1
    buffer.full = buffer.pos == buffer.buffer_size


def _pairs(observations: Observation, buffer: RolloutBuffer) -> list[tuple[np.ndarray, np.ndarray]]:
    """Put each array of an observation beside the buffer's for it."""
    rows: Observation = buffer.observations
    if isinstance(observations, dict) and isinstance(rows, dict):
        return [(observations[key], kept) for key, kept in rows.items()]
    return [(cast("np.ndarray", observations), cast("np.ndarray", rows))]


class RolloutPolicy:
    """
    The policy while it collects: acts at each step, and computes afterwards what SB3's loop computes at each step.

    Both by the weights that the policy had at that step: a change of them amid a rollout is noticed before the next action,
    and what was collected until then is settled by a copy.

    :param algorithm: whose policy it is
    :param networks: of the policy
    :param buffer: to be filled
    """

    def __init__(self, algorithm: OnPolicyAlgorithm, networks: Networks, buffer: RolloutBuffer) -> None:
        self._action_dist = algorithm.policy.action_dist
        self._action_shape = (buffer.n_envs, *algorithm.action_space.shape)  # type: ignore[misc]
        self._device = algorithm.device
        self._networks = networks
        self._tensors = [*networks.policy_tensors, *networks.critic.tensors]
        self._buffer = buffer
        self._n_settled = 0
        self._cut_off: list[tuple[int, int, Any]] = []
        self._remember()

    def _remember(self) -> None:
        """Copy the weights to the CPU; act on the policy's own where it lives there."""
        self._marks = self._mark()
        self._copy = self._networks.on_cpu()
        acting = self._networks if self._tensors[0].device == CPU else self._copy
        self._actor = BoundPass(acting.actor, self._buffer.n_envs, exact=True)
        self._input = self._actor.input.numpy()
        self._draw = _DRAWS[type(self._action_dist)](self._action_dist, self._actor.output, acting.log_std)

    def _mark(self) -> tuple[list[int], list[int]]:
        """Give what changes with the weights: torch counts writes, and a tensor replaced lies elsewhere."""
        return [*map(_VERSION, self._tensors)], [*map(th.Tensor.data_ptr, self._tensors)]

    def act(self, observations: Observation) -> np.ndarray:
        """
        Draw an action for each environment, as SB3's distributions do from the same generator.

        :param observations: one per environment
        :return: the actions
        :raises ValueError: if the policy gives NaN
        """
        if self._mark() != self._marks:
            self.settle()
            self._remember()
        if self._networks.takes_vectors:
            np.copyto(self._input, cast("np.ndarray", observations), casting="same_kind")
        else:
            self._actor.input.copy_(self._networks.features(obs_as_tensor(observations, CPU)))
        self._actor.run()
        self._observations, self._actions = observations, self._draw()
        return self._actions.reshape(self._action_shape)

    def await_bootstrap(self, ended: np.ndarray, infos: list[dict[str, Any]]) -> None:
        """
        Note the last observations of episodes that a time limit cut off.

        :param ended: indices of the environments whose episode ended
        :param infos: of all environments
        """
        for env_index in ended:
            info = infos[env_index]
            if info.get("terminal_observation") is not None and info.get("TimeLimit.truncated", False):
                self._cut_off.append((self._buffer.pos, env_index, info["terminal_observation"]))

    def values_at(self, observations: Observation) -> th.Tensor:
        """
        Compute values by the weights remembered.

        :param observations: stacked along the first dimension
        :return: shape ``(n, 1)``, on the CPU
        """
        return self._values(obs_as_tensor(observations, CPU))

    def current(self, name: str) -> th.Tensor:
        """
        Compute a quantity of the present step, for a callback that asks.

        :param name: ``obs_tensor``, ``values`` or ``log_probs``
        :return: as SB3's loop has it
        """
        observations = obs_as_tensor(self._observations, CPU)
        if name == "obs_tensor":
            return cast("th.Tensor", obs_as_tensor(self._observations, self._device))
        if name == "values":
            return self._values(observations).to(self._device)
        return self._log_probs(observations, th.from_numpy(self._actions)).to(self._device)

    def settle(self) -> None:
        """Fill in values, log-probabilities and bootstrapped rewards of all steps written since the last time."""
        buffer, n_steps = self._buffer, max(1, LATE_ROWS // self._buffer.n_envs)
        for start in range(self._n_settled, buffer.pos, n_steps):
            steps = slice(start, min(start + n_steps, buffer.pos))
            observations = obs_as_tensor(_joined(buffer.observations, steps), CPU)
            actions = th.from_numpy(_joined(buffer.actions, steps))
            buffer.values[steps] = self._values(observations).numpy().reshape(-1, buffer.n_envs)
            buffer.log_probs[steps] = self._log_probs(observations, actions).numpy().reshape(-1, buffer.n_envs)
        self._n_settled = buffer.pos
        if self._cut_off:
            steps_cut, envs_cut, last = zip(*self._cut_off, strict=True)
            values = self.values_at(_stacked(last, buffer))
            buffer.rewards[list(steps_cut), list(envs_cut)] += buffer.gamma * values.numpy().flatten()
            self._cut_off.clear()

    @th.no_grad()
    def _values(self, observations: PyTorchObs) -> th.Tensor:
        return self._copy.critic(self._copy.features(observations))

    @th.no_grad()
    def _log_probs(self, observations: PyTorchObs, actions: th.Tensor) -> th.Tensor:
        output, log_std = self._copy.actor(self._copy.features(observations)), self._copy.log_std
        self._action_dist.proba_distribution(*((output,) if log_std is None else (output, log_std)))
        single = isinstance(self._action_dist, CategoricalDistribution)
        return self._action_dist.log_prob(actions.flatten() if single else actions.float())


def _joined(rows: Observation, steps: slice) -> Observation:
    """Join step and environment of some steps."""
    if isinstance(rows, dict):
        return {key: part[steps].reshape(-1, *part.shape[2:]) for key, part in rows.items()}
    return rows[steps].reshape(-1, *rows.shape[2:])


def _stacked(observations: Sequence[Any], buffer: RolloutBuffer) -> Observation:
    """Stack single observations as the buffer holds them."""
    if isinstance(buffer.observations, dict):
        rows = {key: np.stack([each[key] for each in observations]) for key in buffer.observations}
        return {key: part.reshape(-1, *buffer.observations[key].shape[2:]) for key, part in rows.items()}
    return np.stack(observations).reshape(-1, *buffer.observations.shape[2:])


class Deferred(partial[Any]):
    """A variable that is computed when a callback asks for it."""


class SharedLocals(dict[str, Any]):
    """
    What callbacks see as ``self.locals``.

    :param known: the variables so far
    :param policy: computes those in ``LATE``
    """

    def __init__(self, known: dict[str, Any], policy: RolloutPolicy) -> None:
        super().__init__(known)
        for name in LATE:
            self[name] = Deferred(policy.current, name)

    def __getitem__(self, name: str) -> Any:
        value = super().__getitem__(name)
        return value() if isinstance(value, Deferred) else value

    def get(self, name: str, default: Any = None) -> Any:
        """Look up a variable."""
        return self[name] if name in self else default  # noqa: SIM401  # dict.get would not ask


def share_locals(callback: BaseCallback, shared: SharedLocals) -> None:
    """
    Give a callback and all that it calls one dict of variables, as SB3 does when training starts.

    :param callback: the root
    :param shared: the dict
    """
    pending, reached = [callback], set()
    while pending:
        current = pending.pop()
        reached.add(id(current))
        current.locals = shared
        members = [part for value in vars(current).values() for part in (value if isinstance(value, list) else [value])]
        pending += [part for part in members if isinstance(part, BaseCallback) and id(part) not in reached]


Draw = Callable[[], np.ndarray]
"""Draws actions from whatever the actor's output is when it is called: flat, one row or number per environment."""


def _gaussian(_: Distribution, output: th.Tensor, log_std: th.Tensor) -> Draw:
    noise, std = th.empty_like(output), log_std.detach().exp().numpy()
    noise_array, mean = noise.numpy(), output.numpy()

    def draw() -> np.ndarray:
        noise.normal_()
        actions: np.ndarray = mean + noise_array * std
        if math.isnan(np.vdot(actions, actions)):  # the quickest look at a few numbers
            raise ValueError("The policy gave an action that is not a number: its weights or what it saw must be mended.")
        return actions

    return draw


def _choice(_: Distribution, output: th.Tensor, log_std: None) -> Draw:
    return _race(output)


def _choices(distribution: MultiCategoricalDistribution, output: th.Tensor, log_std: None) -> Draw:
    races = [_race(part) for part in th.split(output, list(distribution.action_dims), dim=1)]
    return lambda: np.stack([race() for race in races], axis=1)


def _bits(_: Distribution, output: th.Tensor, log_std: None) -> Draw:
    return lambda: th.bernoulli(output.sigmoid()).numpy()


def _race(logits: th.Tensor) -> Draw:
    """
    Draw as ``th.multinomial`` does: option i rings after an exponential time of rate ``p_i``, and the first one wins.

    Its many checks of its argument take longer than that.
    """
    clocks = th.empty_like(logits, memory_format=th.contiguous_format)
    times, scores = clocks.numpy(), logits.numpy()

    def draw() -> np.ndarray:
        clocks.exponential_()
        if np.isnan(scores).any():
            raise ValueError("The policy gave a probability that is not a number: its weights or what it saw must be mended.")
        choices: np.ndarray = (scores - np.log(times)).argmax(axis=-1)
        return choices

    return draw


_DRAWS: dict[type[Distribution], Callable[..., Draw]] = {
    DiagGaussianDistribution: _gaussian,
    CategoricalDistribution: _choice,
    MultiCategoricalDistribution: _choices,
    BernoulliDistribution: _bits,
}
