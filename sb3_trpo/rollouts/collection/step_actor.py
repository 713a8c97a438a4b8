"""The actor in the fast loop: from one observation per environment to the output of its last layer, at each step."""

from __future__ import annotations

from typing import Protocol, cast

import numpy as np
import torch as th
from stable_baselines3.common.utils import obs_as_tensor

from sb3_trpo.networks.array_runner import ArrayRunner, pays_by_arrays
from sb3_trpo.networks.plain_network import Networks
from sb3_trpo.networks.preallocated import PreallocatedRunner
from sb3_trpo.networks.stack import Stack
from sb3_trpo.rollouts.floating_point import copy_quietly, quietly_if_needed
from sb3_trpo.rollouts.plain_spaces import Observation

CPU = th.device("cpu")


class StepActor(Protocol):
    """
    The actor on one observation per environment. It follows what is written in place into the networks' tensors.

    :param output: what the last layer returned at the last call, shape ``(n_envs, n_outputs)``, overwritten by the next one
    """

    output: np.ndarray

    def __call__(self, observations: Observation) -> None:
        """
        Run the actor.

        :param observations: plain observations, shape ``(n_envs, ...)`` or a dict of such arrays
        :raises ValueError: if they have another shape
        """
        ...


class VectorActor:
    """
    A dense actor on vectors, which are its input as they are.

    :param networks: the networks, on the CPU
    :param n_envs: number of environments
    """

    def __init__(self, networks: Networks, n_envs: int) -> None:
        self._runner, self.input, self.output = _dense_runner(networks.actor, n_envs)

    def __call__(self, observations: Observation) -> None:
        """Run the actor; its input then holds the observations in float32."""
        vectors = cast("np.ndarray", observations)
        if vectors.shape != self.input.shape:  # copying might broadcast it
            raise ValueError(f"observations have shape {vectors.shape}, not {self.input.shape}")
        copy_quietly(self.input, vectors, "same_kind")
        quietly_if_needed(self._runner.run)


class FeatureActor:
    """
    A dense actor on observations that have to be encoded first: choices, matrices, dicts.

    :param networks: the networks, on the CPU
    :param n_envs: number of environments
    """

    def __init__(self, networks: Networks, n_envs: int) -> None:
        self._features = networks.features
        self._runner, self._input, self.output = _dense_runner(networks.actor, n_envs)

    def __call__(self, observations: Observation) -> None:
        """Run the actor."""
        self._input[:] = self._features(obs_as_tensor(observations, CPU)).numpy()
        quietly_if_needed(self._runner.run)


class ImageActor:
    """
    An actor that begins with convolutions, on the device of its tensors.

    :param networks: the networks
    :param n_envs: number of environments
    """

    def __init__(self, networks: Networks, n_envs: int) -> None:
        self._networks = networks
        self._device = networks.actor.tensors[0].device
        self._trunk, self._rest = networks.actor.split(networks.n_shared_layers)
        self.output = np.empty((n_envs, networks.actor.n_outputs), np.float32)
        self.shared: np.ndarray | None = None
        """What actor and critic have in common computes this from the last observations, shape ``(n_envs, ...)``."""

    @th.no_grad()
    def __call__(self, observations: Observation) -> None:
        """Run the actor."""
        hidden = self._trunk(self._networks.features(obs_as_tensor(observations, self._device)))
        if self._trunk.layers:
            self.shared = hidden.cpu().numpy()
        self.output[:] = self._rest(hidden).cpu().numpy()


def step_actor(networks: Networks, n_envs: int) -> StepActor:
    """
    Choose what runs the actor.

    :param networks: the networks, on the CPU unless they read images
    :param n_envs: number of environments
    :return: the actor
    """
    if networks.of_images:
        return ImageActor(networks, n_envs)
    return VectorActor(networks, n_envs) if networks.takes_vectors else FeatureActor(networks, n_envs)


def _dense_runner(actor: Stack, n_envs: int) -> tuple[ArrayRunner | PreallocatedRunner, np.ndarray, np.ndarray]:
    """Choose what runs a dense actor on one row per environment; return it with its input and its output as arrays."""
    if pays_by_arrays(actor, n_envs) or not actor.is_dense:  # the last layer may pass its input on
        runner = ArrayRunner(actor, n_envs)
        return runner, runner.input, runner.output
    preallocated = PreallocatedRunner(actor, n_envs)
    return preallocated, preallocated.input.numpy(), preallocated.output.numpy()
