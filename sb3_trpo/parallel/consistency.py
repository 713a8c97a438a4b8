"""Whether all ranks have the same settings and the same policy."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch as th
from torch import nn

from sb3_trpo.parallel.communicator import Communicator
from sb3_trpo.parallel.faults import RanksPartedError

MIXER = 0x9E3779B97F4A7C15 - 2**64
"""2^64 over the golden ratio, odd: its multiples spread over all bits (Knuth, The Art of Computer Programming, 6.4)."""
INTEGERS = {1: th.uint8, 2: th.int16, 4: th.int32, 8: th.int64}
"""Integer types by their number of bytes."""
MAX_SHOWN = 3
"""Differences that an error shows; the rest is most likely of the same kind."""


def require_same(values: Mapping[str, object], what: str, communicator: Communicator) -> None:
    """
    Check that all ranks have the same values.

    :param values: by name; plain data, because they are pickled
    :param what: a word for them in the error
    :param communicator: of this rank
    :raises RanksPartedError: if a rank has others than the first, with names and values
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

    Checksums are exchanged first, as one short tensor; only if they differ are names looked for.

    :param module: this rank's
    :param communicator: of this rank
    :raises RanksPartedError: if they differ, with their names
    """
    state = module.state_dict()
    sums = communicator.gather(checksums(state.values()))
    if (sums != sums[0]).any():
        require_same(dict(zip(state, sums[communicator.rank].tolist(), strict=True)), "parameters", communicator)


def shapes_of(module: nn.Module) -> dict[str, list[int]]:
    """
    List the shapes of parameters and buffers.

    :param module: for example a policy
    :return: shapes by name
    """
    return {name: [*tensor.shape] for name, tensor in module.state_dict().items()}


def checksums(tensors: Iterable[th.Tensor]) -> th.Tensor:
    """
    Compute a checksum of each tensor's bits and their places.

    :param tensors: of any types and shapes, on one device
    :return: int64, one for each tensor, on their device
    """
    return th.stack([_checksum(tensor.detach()) for tensor in tensors])


def _checksum(tensor: th.Tensor) -> th.Tensor:
    """Add up a tensor's entries as integers, mixed and weighted by their places, modulo 2^64."""
    real = th.view_as_real(tensor) if tensor.is_complex() else tensor
    bits = real.contiguous().flatten().view(INTEGERS[real.element_size()]).long().mul(MIXER)
    factors = th.arange(len(bits), device=bits.device).mul(2).add(1)  # odd factors lose no bit
    return bits.bitwise_xor(bits >> 32).mul(factors).sum()
