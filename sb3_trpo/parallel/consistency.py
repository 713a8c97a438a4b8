"""
Checks that all ranks have the same settings and the same policy.

Nothing here makes them the same: the first rank's weights are broadcast when a model is made, and reductions give the same
bits on all ranks. ``rollout_sync.py`` checks after every update.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import nn

from sb3_trpo.parallel.communicator import Communicator
from sb3_trpo.parallel.faults import RanksPartedError

MIXER = 0x9E3779B97F4A7C15 - 2**64
"""2^64 over the golden ratio, odd: its multiples spread over all bits (Knuth, The Art of Computer Programming, 6.4)."""
INTEGERS = {1: th.uint8, 2: th.int16, 4: th.int32, 8: th.int64}
"""Integer types by their number of bytes."""
MAX_SHOWN = 3
"""Differences that an error shows; the rest is most likely of the same kind."""


def policies_of(model: Any) -> list[ActorCriticPolicy]:
    """
    List the policies that a model trains: its own, and those of which only the critic is used, if it predicts costs.

    :param model: the algorithm
    :return: the policies, its own first
    """
    return [model.policy, *getattr(model, "cost_critics", ())]


def require_same(values: Mapping[str, object], what: str, communicator: Communicator) -> None:
    """
    Check that all ranks have the same values.

    :param values: values of this rank by name; plain data, because they are pickled
    :param what: what the error calls them
    :param communicator: connects this rank to the others
    :raises RanksPartedError: if a rank differs from the first; the message gives names and values
    """
    first, *others = communicator.gather_objects(values)
    differing = {
        rank: [name for name in {**first, **other} if first.get(name, "absent") != other.get(name, "absent")]
        for rank, other in enumerate(others, start=1)
        if other != first
    }
    if differing:
        rank, names = next(iter(differing.items()))
        other = others[rank - 1]
        shown = ", ".join(f"{name} ({other.get(name)!r}, not {first.get(name)!r})" for name in names[:MAX_SHOWN])
        raise RanksPartedError(
            f"Ranks {', '.join(map(str, differing))} of {communicator.size} differ from rank 0 in {what}: rank {rank} in "
            f"{shown}. Run the same script with the same settings, libraries, kind of processor and number of threads "
            "everywhere."
        )


def require_same_parameters(module: nn.Module, communicator: Communicator) -> None:
    """
    Check that all ranks hold the same parameters and buffers, bit for bit.

    Checksums are exchanged first, as one short tensor; names are compared only if these differ.

    :param module: module of this rank
    :param communicator: connects this rank to the others
    :raises RanksPartedError: if they differ; the message names them
    """
    state = module.state_dict()
    sums = communicator.gather(checksums(state.values()))
    if (sums != sums[0]).any():
        require_same(dict(zip(state, sums[communicator.rank].tolist(), strict=True)), "parameters", communicator)


def shapes_of(module: nn.Module) -> dict[str, list[int]]:
    """
    List the shapes of parameters and buffers.

    :param module: a policy, for example
    :return: shapes by name
    """
    return {name: [*tensor.shape] for name, tensor in module.state_dict().items()}


def checksums(tensors: Iterable[th.Tensor]) -> th.Tensor:
    """
    Compute a checksum of each tensor that depends on every bit and its place.

    :param tensors: tensors of any types and shapes, on one device
    :return: checksums, int64, shape ``(n_tensors,)``, on the same device
    """
    return th.stack([_checksum(tensor.detach()) for tensor in tensors])


def _checksum(tensor: th.Tensor) -> th.Tensor:
    """Add up a tensor's entries as mixed integers, weighted by their places, modulo 2^64."""
    real = th.view_as_real(tensor) if tensor.is_complex() else tensor
    bits = real.contiguous().flatten().view(INTEGERS[real.element_size()]).long().mul(MIXER)
    factors = th.arange(len(bits), device=bits.device).mul(2).add(1)  # odd factors lose no bit
    # The multiplication spreads low bits upwards and the shift high bits downwards. Otherwise round numbers, with their many
    # zero bits, could change places unnoticed.
    return bits.bitwise_xor(bits >> 32).mul(factors).sum()
