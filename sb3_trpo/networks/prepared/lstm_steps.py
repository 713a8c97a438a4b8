"""
Running an LSTM forward without autograd, step by step: on a few rows while a policy acts, and on a whole rollout afterwards.

torch's fused kernel rearranges the weights at each call, which for a single step takes ten times as long as the arithmetic,
and keeps something for every new shape. Symbols are those of ``lstm.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch as th

from sb3_trpo.networks.prepared.array_runner import product_call


class ArrayStates(NamedTuple):
    """
    h and c as arrays.

    :param h: shape ``(..., n_hidden)``
    :param c: the same shape
    """

    h: np.ndarray
    c: np.ndarray


@dataclass(frozen=True)
class LstmStack:
    """
    The weights of an LSTM.

    :param layers: W, R and, unless there are no biases, both biases of each layer
    """

    layers: tuple[tuple[th.Tensor, ...], ...]

    @property
    def tensors(self) -> list[th.Tensor]:
        """All weights, layer by layer."""
        return [tensor for layer in self.layers for tensor in layer]

    @property
    def n_inputs(self) -> int:
        """Number of features."""
        return self.layers[0][0].shape[1]

    @property
    def n_hidden(self) -> int:
        """Number of units in each layer."""
        return self.layers[0][1].shape[1]

    @property
    def device(self) -> th.device:
        """Where the weights are."""
        return self.layers[0][0].device

    def with_tensors(self, tensors: Sequence[th.Tensor]) -> LstmStack:
        """
        Build the same LSTM on other tensors.

        :param tensors: like :attr:`tensors`
        :return: the LSTM
        """
        remaining = iter(tensors)
        return LstmStack(tuple(tuple(islice(remaining, len(layer))) for layer in self.layers))

    @th.no_grad()
    def on_cpu(self) -> LstmStack:
        """Copy the weights to the CPU."""
        return self.with_tensors([tensor.to("cpu", copy=True) for tensor in self.tensors])


class Gates:
    """
    The elementwise half of a step: from a_t and ``c_{t-1}`` to h_t and c_t.

    :param n_rows: largest number of rows
    :param n_hidden: number of units
    """

    def __init__(self, n_rows: int, n_hidden: int) -> None:
        self.a = np.empty((n_rows, 4 * n_hidden), np.float32)
        self._product = np.empty((n_rows, n_hidden), np.float32)
        # sigmoid(a) = (1 + tanh(a / 2)) / 2: so one call of tanh serves all gates.
        is_candidate = np.arange(4) == 2  # torch's order is i, f, g, o
        self._scale = np.where(is_candidate, 1.0, 0.5).astype(np.float32).repeat(n_hidden)
        self._shift = np.where(is_candidate, 0.0, 0.5).astype(np.float32).repeat(n_hidden)
        self._parts = [slice(k * n_hidden, (k + 1) * n_hidden) for k in range(4)]

    def apply(self, c: np.ndarray, next_h: np.ndarray, next_c: np.ndarray) -> None:
        """
        Compute h_t and c_t from the first rows of :attr:`a`, which it overwrites.

        :param c: ``c_{t-1}``, shape ``(n, n_hidden)``
        :param next_h: where to write h_t
        :param next_c: where to write c_t
        """
        n = len(c)
        a, product = self.a[:n], self._product[:n]
        a *= self._scale
        np.tanh(a, out=a)
        a *= self._scale
        a += self._shift
        i, f, g, o = (a[:, part] for part in self._parts)
        np.multiply(f, c, out=next_c)
        np.multiply(i, g, out=product)
        next_c += product
        np.tanh(next_c, out=next_h)
        next_h *= o


class LayerStep:
    """
    One layer on a fixed number of rows, prepared to take many steps.

    It sees what is written in place into the weights. A step changes nothing that it reads, so it can be repeated.

    :param weights: W, R and, unless there are none, both biases, on the CPU and of float32
    :param x: array that holds the input of each step, shape ``(n_rows, n_inputs)``
    :param before: arrays that hold the states before each step, shape ``(n_rows, n_hidden)``
    :param after: arrays for the states after it
    """

    def __init__(self, weights: tuple[th.Tensor, ...], x: np.ndarray, before: ArrayStates, after: ArrayStates) -> None:
        w, r, *biases = (tensor.detach() for tensor in weights)
        self._gates = Gates(len(x), r.shape[1])
        a, from_state = self._gates.a, np.empty_like(self._gates.a)
        self._calls: list[Callable[[], object]] = [
            product_call(x, w.numpy().T, a),
            product_call(before.h, r.numpy().T, from_state),
            partial(np.add, a, from_state, out=a),
            *(partial(np.add, a, bias.numpy(), out=a) for bias in biases),
            partial(self._gates.apply, before.c, after.h, after.c),
        ]

    def run(self) -> None:
        """Compute the states after the step."""
        for call in self._calls:
            call()


class LstmStep:
    """
    All layers on a fixed number of rows, prepared to take many steps.

    :param lstm: the weights, on the CPU and of float32
    :param before: arrays that hold the states before each step, shape ``(n_layers, n_rows, n_hidden)``
    :param after: arrays for the states after it; :attr:`output` is h of the last layer
    """

    def __init__(self, lstm: LstmStack, before: ArrayStates, after: ArrayStates) -> None:
        self.input = x = np.empty((before.h.shape[1], lstm.n_inputs), np.float32)
        self._layers = []
        for index, weights in enumerate(lstm.layers):
            old, new = (ArrayStates(states.h[index], states.c[index]) for states in (before, after))
            self._layers.append(LayerStep(weights, x, old, new))
            x = new.h
        self.output = x

    def run(self) -> None:
        """Compute the states after the step from :attr:`input` and those before it."""
        for layer in self._layers:
            layer.run()


class Sequences(NamedTuple):
    """
    The parts of a rollout between episode starts, laid side by side.

    Rows of the rollout are ordered by (step, env). Packed, they are ordered by their distance from the start of their part,
    and then from the longest part to the shortest. So the packed rows are blocks, one for each distance, and every block has
    rows of the first parts of the block before.

    :param order: index of the row in the rollout, for each packed row
    :param counts: number of rows in each block
    :param initial: index of the environment in whose state a part begins, for each part; -1 for a state of zeros
    """

    order: np.ndarray
    counts: np.ndarray
    initial: np.ndarray


def sequences_of(starts: np.ndarray) -> Sequences:
    """
    Cut a rollout where episodes start.

    :param starts: whether an episode starts, shape ``(n_steps, n_envs)``
    :return: the parts, the longest first
    """
    n_steps, n_envs = starts.shape
    begins = starts.T > 0  # environment after environment
    continues = ~begins[:, 0]
    begins = begins.copy()
    begins[:, 0] = True
    first = np.flatnonzero(begins)
    lengths = np.diff(first, append=n_envs * n_steps)
    ranked = np.argsort(-lengths, kind="stable")
    first, lengths = first[ranked], lengths[ranked]
    counts = np.searchsorted(-lengths, -np.arange(lengths[0]), side="left")  # parts that are longer than each distance
    distance = np.repeat(np.arange(len(counts)), counts)
    part = np.arange(len(distance)) - np.repeat(np.cumsum(counts) - counts, counts)
    env, step = np.divmod(first[part] + distance, n_steps)
    env_of_part = first // n_steps
    goes_on = (first % n_steps == 0) & continues[env_of_part]
    return Sequences(step * n_envs + env, counts, np.where(goes_on, env_of_part, -1))


@th.no_grad()
def run_sequences(lstm: LstmStack, x: th.Tensor, starts: np.ndarray, initial: ArrayStates) -> ArrayStates:
    """
    Run an LSTM over a rollout, with states of zeros where episodes start.

    :param lstm: the weights, on the CPU and of float32
    :param x: features, shape ``(n_steps * n_envs, n_inputs)``, step after step
    :param starts: whether an episode starts, shape ``(n_steps, n_envs)``
    :param initial: states before the first step, shape ``(n_layers, n_envs, n_hidden)``
    :return: states after each step, shape ``(n_steps, n_layers, n_envs, n_hidden)``
    """
    sequences = sequences_of(starts)
    n_steps, n_envs = starts.shape
    after = ArrayStates(*(np.empty((n_steps, len(lstm.layers), n_envs, lstm.n_hidden), np.float32) for _ in range(2)))
    packed = x[th.from_numpy(sequences.order)]
    with np.errstate(all="ignore"):
        for index, weights in enumerate(lstm.layers):
            begin = ArrayStates(*(_zero_unless_continued(part[index], sequences.initial) for part in initial))
            states = _run_layer(weights, packed, sequences.counts, begin)
            packed = th.from_numpy(states.h)
            for rows, part in zip(after, states, strict=True):
                steps, envs = np.divmod(sequences.order, n_envs)
                rows[steps, index, envs] = part
    return after


def _zero_unless_continued(states: np.ndarray, initial: np.ndarray) -> np.ndarray:
    """Give each part of a rollout its initial states, shape ``(n_parts, n_hidden)``."""
    return np.where(initial[:, None] < 0, np.float32(0.0), states[initial])


def _run_layer(weights: tuple[th.Tensor, ...], x: th.Tensor, counts: np.ndarray, begin: ArrayStates) -> ArrayStates:
    """Run one layer over packed rows; return the states after each."""
    w, r, *biases = weights
    # What does not depend on the step before is computed for all rows at once.
    from_input = (th.addmm(biases[0] + biases[1], x, w.t()) if biases else x.mm(w.t())).numpy()
    h, c = (np.empty((len(x), r.shape[1]), np.float32) for _ in range(2))
    gates, start = Gates(len(begin.h), r.shape[1]), 0
    before_h, before_c = begin
    for n in counts:
        rows = slice(start, start + n)
        product_call(before_h[:n], r.numpy().T, gates.a[:n])()
        gates.a[:n] += from_input[rows]
        gates.apply(before_c[:n], h[rows], c[rows])
        before_h, before_c, start = h[rows], c[rows], start + n
    return ArrayStates(h, c)
