"""The actor in the fast loop: from one observation per environment to the output of its last layer, at each step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, cast

import numpy as np
import torch as th
from stable_baselines3.common.utils import obs_as_tensor

from sb3_trpo.networks.plain_network import Networks
from sb3_trpo.networks.prepared.array_runner import ArrayRunner, pays_by_arrays
from sb3_trpo.networks.prepared.preallocated import PreallocatedRunner
from sb3_trpo.networks.reading.features import Features
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


class RowRunner(Protocol):
    """Computes one array from another, on one row per environment."""

    def run(self) -> None:
        """Compute it. NumPy may raise on underflow; then this can be called again."""
        ...


Prepared = tuple[RowRunner, np.ndarray, np.ndarray]
"""A runner, the array that it reads and the array that it writes."""


class VectorActor:
    """
    An actor on vectors, which are its input as they are.

    :param prepared: runs it
    """

    def __init__(self, prepared: Prepared) -> None:
        self._runner, self.input, self.output = prepared

    def __call__(self, observations: Observation) -> None:
        """Run the actor; its input then holds the observations in float32."""
        vectors = cast("np.ndarray", observations)
        if vectors.shape != self.input.shape:  # copying might broadcast it
            raise ValueError(f"observations have shape {vectors.shape}, not {self.input.shape}")
        copy_quietly(self.input, vectors, "same_kind")
        quietly_if_needed(self._runner.run)


class FeatureActor:
    """
    An actor on observations that have to be encoded first: choices, matrices, dicts.

    :param features: encodes them
    :param prepared: runs it
    """

    def __init__(self, features: Features, prepared: Prepared) -> None:
        self._features = features
        self._runner, self._input, self.output = prepared

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


def row_runner(stack: Stack, n_rows: int) -> Prepared:
    """
    Choose what runs a dense stack on a few rows.

    :param stack: the layers, on the CPU
    :param n_rows: number of rows
    :return: the runner, its input and its output
    """
    if pays_by_arrays(stack, n_rows) or not stack.is_dense:  # the last layer may pass its input on
        runner = ArrayRunner(stack, n_rows)
        return runner, runner.input, runner.output
    preallocated = PreallocatedRunner(stack, n_rows)
    return preallocated, preallocated.input.numpy(), preallocated.output.numpy()


def step_actor(networks: Networks, n_envs: int, prepare: Callable[[Stack], Prepared]) -> StepActor:
    """
    Choose what runs the actor.

    :param networks: the networks, on the CPU unless they read images
    :param n_envs: number of environments
    :param prepare: makes what runs a dense actor
    :return: the actor
    """
    if networks.of_images:
        return ImageActor(networks, n_envs)
    prepared = prepare(networks.actor)
    return VectorActor(prepared) if networks.takes_vectors else FeatureActor(networks.features, prepared)
