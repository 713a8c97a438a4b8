"""
A recurrent policy in the fast rollout loop.

A step runs the actor's LSTM and layers alone. Values, and the states of a critic's own LSTM, follow when the rollout is
complete: between episode starts they depend on nothing but observations, so all episodes run side by side.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Protocol, cast

import numpy as np
import torch as th
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.utils import obs_as_tensor

from sb3_trpo.distributions.base import DistributionKind
from sb3_trpo.extras import CONTRIB, needs
from sb3_trpo.maskable.trpo import MaskedActingPolicy
from sb3_trpo.networks.prepared.lstm_steps import ArrayStates, LstmStep, run_sequences
from sb3_trpo.networks.stack import Stack
from sb3_trpo.recurrent.networks import RecurrentNetworks, read_recurrent_networks
from sb3_trpo.rollouts.collection.acting import Acting, ActingPolicy
from sb3_trpo.rollouts.collection.environment import RolloutEnv
from sb3_trpo.rollouts.collection.step_actor import CPU, Prepared, RowRunner
from sb3_trpo.rollouts.plain_spaces import Observation

with needs(*CONTRIB):
    from sb3_contrib.common.recurrent.type_aliases import RNNStates


class BufferWithStates(Protocol):
    """
    What a rollout buffer of a recurrent policy must have: the states before each step, not yet zero where episodes start.

    Each is an array of shape ``(n_steps, n_layers, n_envs, n_hidden)`` while the buffer is filled.
    """

    hidden_states_pi: np.ndarray
    cell_states_pi: np.ndarray
    hidden_states_vf: np.ndarray
    cell_states_vf: np.ndarray


class RecurrentRunner:
    """
    Runs an LSTM and the layers above it on one row per environment.

    :param lstm: the LSTM
    :param layers: the layers
    :param latent: their input
    """

    def __init__(self, lstm: LstmStep, layers: RowRunner, latent: np.ndarray) -> None:
        self._lstm = lstm
        self._layers = layers
        self._latent = latent

    def run(self) -> None:
        """Compute the states after the step and the layers' output."""
        self._lstm.run()
        np.copyto(self._latent, self._lstm.output)
        self._layers.run()


class RecurrentActingPolicy(ActingPolicy):
    """
    A plain recurrent policy that acts in a rollout and completes the buffer afterwards.

    :param networks: the policy's networks
    :param algorithm: the algorithm; its ``_last_lstm_states`` are the states before the first step, and at the end of the
        rollout those after the last one
    :param buffer: the rollout buffer to fill
    :param env: the training environments
    """

    late_names = (*ActingPolicy.late_names, "episode_starts", "lstm_states")

    def __init__(self, networks: RecurrentNetworks, algorithm: Any, buffer: RolloutBuffer, env: RolloutEnv) -> None:
        self._recurrent = networks
        rows = cast("BufferWithStates", buffer)
        self._of_actor = ArrayStates(rows.hidden_states_pi, rows.cell_states_pi)
        self._of_critic = ArrayStates(rows.hidden_states_vf, rows.cell_states_vf)
        last: RNNStates = algorithm._last_lstm_states
        self._after = _as_arrays(last.pi)
        self._before = ArrayStates(*map(np.empty_like, self._after))
        self._critic_after = _as_arrays(last.vf)
        """The state of the critic's own LSTM after the last step that has a value."""
        self._n_valued, self._step = 0, -1
        super().__init__(networks.networks, algorithm, buffer, env)

    @classmethod
    def read(cls, policy: ActorCriticPolicy, kinds: Sequence[DistributionKind]) -> Acting | None:
        """Read a recurrent policy's networks."""
        networks = read_recurrent_networks(policy, kinds)
        return None if networks is None else partial(cls, networks)

    def _weights(self) -> list[th.Tensor]:
        return [*super()._weights(), *self._recurrent.lstm_tensors]

    def _follow_weights(self) -> None:
        self._actor_lstm, self._critic_lstm = self._recurrent.copied_lstms()
        super()._follow_weights()

    def _runner(self, actor: Stack) -> Prepared:
        own = self._recurrent.actor_lstm
        step = LstmStep(own if own.device == CPU else self._actor_lstm, self._before, self._after)
        layers, latent, output = super()._runner(actor)
        return RecurrentRunner(step, layers, latent), step.input, output

    def act(self, observations: Observation, starts: np.ndarray | None) -> np.ndarray:
        """
        Sample an action for each environment, with the memory of its episode.

        :param observations: plain observations, shape ``(n_envs, ...)`` or a dict of such arrays
        :param starts: whether each is the first observation of an episode, shape ``(n_envs,)``
        :return: the actions, not clipped, shape ``(n_envs, *action_shape)``
        :raises ValueError: if the policy returns NaN
        """
        self._starts, self._step = np.asarray(starts), self._buffer.pos
        for before, after, rows in zip(self._before, self._after, self._of_actor, strict=True):
            before[:] = rows[self._buffer.pos] = after
        if self._starts.any():
            for before in self._before:
                before[:, self._starts > 0] = 0.0
        return super().act(observations, starts)

    def late_variable(self, name: str) -> Any:
        """
        Compute a variable of the present step, for a callback that asks for it.

        :param name: one of :attr:`late_names`
        :return: what sb3-contrib's loop has under this name, on the algorithm's device
        """
        if name == "episode_starts":
            return th.tensor(self._starts, dtype=th.float32, device=self._algorithm.device)
        if name == "lstm_states":
            self._write_values(slice(0, self._step + 1))
            return self._states(self._step + 1)
        return super().late_variable(name)

    def _states(self, step: int) -> RNNStates:
        """Give the states before a step, as sb3-contrib's loop has them."""
        return RNNStates(self._as_tensors(self._actor_state(step)), self._as_tensors(self._critic_state(step)))

    def _as_tensors(self, states: ArrayStates) -> tuple[th.Tensor, th.Tensor]:
        h, c = (th.tensor(part, device=self._algorithm.device) for part in states)
        return h, c

    def _actor_state(self, step: int) -> ArrayStates:
        """Look up the actor's state before a step that it has taken or is to take next."""
        return self._after if step > self._step else ArrayStates(*(rows[step] for rows in self._of_actor))

    def _critic_state(self, step: int) -> ArrayStates:
        """Look up the critic's state before a step that has a value or is the next to get one."""
        if not self._recurrent.has_own_lstm:
            return self._actor_state(step)
        return self._critic_after if step >= self._n_valued else ArrayStates(*(rows[step] for rows in self._of_critic))

    def _present_values(self) -> th.Tensor:
        self._write_values(slice(0, self._step + 1))
        return th.tensor(self._buffer.values[self._step])[:, None]

    @th.no_grad()
    def _write_values(self, steps: slice) -> None:
        """Compute values and the critic's states, at the steps that lack them: a callback may have asked for some already."""
        steps = slice(self._n_valued, steps.stop)
        if steps.start < steps.stop:
            features = self._features(self._seen(steps))
            values = self._copy.critic(self._critic_latents(steps, features))
            self._buffer.values[steps] = values.numpy().reshape(-1, self._buffer.n_envs)
            self._n_valued = steps.stop

    def _features(self, observations: Observation) -> th.Tensor:
        return self._copy.features(obs_as_tensor(observations, CPU))

    def _critic_latents(self, steps: slice, features: th.Tensor) -> th.Tensor:
        """Compute the input of the critic's layers, and write its states into the buffer."""
        lstm = self._critic_lstm
        if lstm is not None and self._recurrent.has_own_lstm:
            before, after = self._critic_after, run_sequences(lstm, features, self._starts_at(steps), self._critic_after)
            self._critic_after = ArrayStates(*(part[-1] for part in after))
        else:
            before, after = self._actor_state(steps.start), self._actor_states_after(steps)
        for rows, first, others in zip(self._of_critic, before, after, strict=True):
            rows[steps.start], rows[steps.start + 1 : steps.stop] = first, others[:-1]
        return features if lstm is None else _latents(after)

    def _starts_at(self, steps: slice) -> np.ndarray:
        starts: np.ndarray = self._buffer.episode_starts[steps]
        return starts

    def _actor_states_after(self, steps: slice) -> ArrayStates:
        """Look up the actor's states after some steps."""
        last = self._actor_state(steps.stop)
        rows = [part[steps.start + 1 : steps.stop] for part in self._of_actor]
        return ArrayStates(*(np.concatenate((part, end[None])) for part, end in zip(rows, last, strict=True)))

    def _values_after(self, steps: list[int], envs: list[int], observations: Observation) -> th.Tensor:
        states = [self._critic_state(step + 1) for step in steps]
        pairs = list(zip(states, envs, strict=True))
        h, c = (np.stack([state[part][:, env] for state, env in pairs], axis=1) for part in range(2))
        return self._values_from(observations, np.zeros(len(pairs)), ArrayStates(h, c))

    def last_values(self) -> th.Tensor:
        """Compute the values of the observations after the last step, shape ``(n_envs, 1)``, on the CPU."""
        observations = self._env.plain.encode(self._algorithm._last_obs)
        starts = np.asarray(self._algorithm._last_episode_starts)
        return self._values_from(observations, starts, self._critic_state(self._buffer.pos))

    @th.no_grad()
    def _values_from(self, observations: Observation, starts: np.ndarray, states: ArrayStates) -> th.Tensor:
        """Compute values at one observation for each state, on which they follow unless an episode starts."""
        latents = self._features(observations)
        if self._critic_lstm is not None:
            latents = _latents(run_sequences(self._critic_lstm, latents, starts[None], states))
        return self._copy.critic(latents)

    def variables_at_end(self, last_values: th.Tensor) -> dict[str, Any]:
        """Tell what has changed since the last step for callbacks: in sb3-contrib's loop, nothing."""
        return {}

    def forget_step(self) -> None:
        """Erase what was written at the present step, which a callback has ended, and go back to the states before it."""
        super().forget_step()
        step = self._buffer.pos
        for after, rows in zip(self._after, self._of_actor, strict=True):
            after[:] = rows[step]
        if self._n_valued > step:
            self._critic_after = ArrayStates(*(part.copy() for part in self._critic_state(step)))
            self._n_valued = step
        for rows in (*self._of_actor, *self._of_critic, self._buffer.values):
            rows[step] = 0.0
        self._step = step - 1

    def __exit__(self, *error: object) -> None:
        """Give the states after the last step to the algorithm, also if an error has ended the rollout."""
        algorithm: Any = self._algorithm
        self._write_values(slice(0, self._buffer.pos))
        algorithm._last_lstm_states = self._states(self._buffer.pos)
        super().__exit__(*error)


class MaskedRecurrentActingPolicy(MaskedActingPolicy, RecurrentActingPolicy):
    """The same with masked actions."""


def _as_arrays(states: tuple[th.Tensor, ...]) -> ArrayStates:
    h, c = (state.detach().to("cpu", th.float32, copy=True).numpy() for state in states)
    return ArrayStates(h, c)


def _latents(states: ArrayStates) -> th.Tensor:
    """Read the last layer's h after each step, shape ``(n_steps * n_envs, n_hidden)``."""
    h = states.h[:, -1]
    return th.from_numpy(h.reshape(-1, h.shape[-1]))
