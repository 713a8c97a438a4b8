"""
The ranks of one training run, and the one reduction over them.

A process that is alone has :class:`Communicator`, whose reductions are identities. Under a launcher such as ``torchrun`` there
are as many processes as ``WORLD_SIZE`` says, which ``launcher.py`` brings together, and :class:`World` reduces over them by
``torch.distributed``: gloo for tensors on the CPU, NCCL on CUDA. Every rank gets the same bits from a reduction, so all ranks
that decide by its result decide alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch as th
import torch.distributed as dist

T = TypeVar("T")
Store = Any
"""A ``torch.distributed.Store``, whose name is there only where torch has been built with it."""

SHORT = 2**17
"""Bytes up to which the first rank adds up for all: several times as quick as gloo's all-reduce, which is a ring."""
MIXER = 0x9E3779B97F4A7C15 - 2**64
"""2^64 over the golden ratio, odd, whose multiples spread over all bits (Knuth, The Art of Computer Programming, 6.4)."""
LAST_WORDS = "sb3_trpo/last_words/"
"""Where in the store of the process group a rank writes why it ended."""


class RanksPartedError(RuntimeError):
    """The ranks are no longer together: one has ended, hangs, or holds other parameters than the rest."""


class Share(NamedTuple):
    """What a rank has of minibatches: transitions in each, how many there are here, and on the rank with the most."""

    batch_size: int
    n_here: int
    n_steps: int


WHOLE = Share(0, 0, 0)
"""The share of a rank that is alone, which nothing asks for its numbers."""


class Communicator:
    """One process, alone: every reduction is the identity."""

    rank = 0
    size = 1

    @property
    def is_first(self) -> bool:
        """Whether this is the rank that logs, evaluates and writes."""
        return self.rank == 0

    def seed_of(self, seed: int | None) -> int | None:
        """
        Derive this rank's seed; the first rank keeps the one given.

        :param seed: of the run
        :return: the seed, ``None`` for none
        """
        if seed is None or self.is_first:
            return seed
        return int(np.random.SeedSequence((seed, self.rank)).generate_state(1)[0] >> 1)  # room for SB3 to count envs

    def part_of(self, n: int, name: str) -> int:
        """
        Give this rank its part of a number, as even as can be.

        :param n: for all ranks together
        :param name: as the user knows it
        :return: the part
        :raises ValueError: if there is too little for all
        """
        if n < self.size:
            raise ValueError(f"{name} is {n}, which {self.size} ranks share; it must be at least {self.size}. Raise {name}.")
        return n // self.size + (self.rank < n % self.size)

    def share(self, batch_size: int, n: int) -> Share:
        """
        Give this rank its part of minibatches, in proportion to its data.

        :param batch_size: transitions per minibatch of all ranks together
        :param n: transitions of this rank
        :return: its part, at least 1 each
        """
        numbers = self.gather(th.tensor(n)).tolist()
        sizes = [-(-batch_size * each // sum(numbers)) for each in numbers]
        counts = [-(-each // size) for each, size in zip(numbers, sizes, strict=True)]
        return Share(sizes[self.rank], counts[self.rank], max(counts))

    def gather(self, values: th.Tensor) -> th.Tensor:
        """
        Collect a tensor from each rank.

        :param values: of this rank, of the same shape everywhere
        :return: shape ``(size, ...)``
        """
        return values[None]

    def sum(self, values: th.Tensor) -> th.Tensor:
        """
        Add up over the ranks.

        :param values: of this rank, on any device
        :return: the sums
        """
        return values

    def mean(self, total: th.Tensor, weight: float) -> th.Tensor:
        """
        Divide a sum over states by what was summed, numerator and denominator reduced apart.

        :param total: sums of this rank, shape ``(n,)``
        :param weight: how many states they are over
        :return: the means over the states of all ranks
        """
        return total / weight

    def gather_objects(self, value: T) -> list[T]:
        """
        Collect a small value from each rank.

        :param value: of this rank; plain data, for it is pickled
        :return: one value for each rank, in order
        """
        return [value]

    def broadcast_object(self, value: T) -> T:
        """
        Give all ranks what the first one has.

        :param value: of this rank; plain data, for it is pickled
        :return: the first rank's
        """
        return value

    def broadcast(self, tensors: Sequence[th.Tensor]) -> None:
        """
        Overwrite tensors by those of the first rank.

        :param tensors: of the same shapes everywhere
        """

    def mean_gradients(
        self, gradients: Sequence[th.Tensor | None], parameters: Sequence[th.Tensor], n: float
    ) -> list[th.Tensor | None]:
        """
        Average gradients of a sum over states.

        :param gradients: of this rank, ``None`` where there is none
        :param parameters: whose they are
        :param n: how many states they are over
        :return: of all ranks, ``None`` where none has one
        """
        return [None if gradient is None else gradient / n for gradient in gradients]

    def in_step(self, minibatches: Iterable[T], share: Share) -> Iterator[tuple[T, float]]:
        """
        Go through minibatches with the other ranks.

        :param minibatches: of this rank
        :param share: how many they should be
        :return: each minibatch with the weight 1; then, while others still have some, the last one again with the weight 0
        """
        for minibatch in minibatches:
            yield minibatch, 1.0

    def agree(self, check: Callable[[], None]) -> None:
        """
        Run a check that raises on all ranks if it does on one, so that none waits for a rank that has gone.

        :param check: raises a ``ValueError``, or does not
        :raises ValueError: with the texts of the ranks where it fails
        """
        check()

    def compare(self, values: dict[str, Any], what: str) -> None:
        """
        Compare with the other ranks.

        :param values: by name
        :param what: they are, for the error
        :raises RanksPartedError: if a rank has others, with the names
        """

    @contextmanager
    def together(self) -> Iterator[None]:
        """Tell the other ranks if something is raised within, and leave them, so that they need not wait."""
        yield


class World(Communicator):
    """
    Several processes.

    :param device: where small tensors of ours live, the policy's
    :param store: in which a rank that ends can say why; ``None`` if the process group is not ours
    :param leave: ends the process group if it is ours
    """

    def __init__(self, device: th.device, store: Store | None, leave: Callable[[], None]) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self._device = device
        self._store = store
        self._leave = leave
        self._has_left = False

    def gather(self, values: th.Tensor) -> th.Tensor:
        """Gather once."""
        sent = values.detach().to(self._device).contiguous()
        stacked = sent.new_empty(self.size, *sent.shape)
        with self._contact():
            self._gather_into(stacked, sent)
        return stacked.to(values.device)

    def sum(self, values: th.Tensor) -> th.Tensor:
        """Reduce a copy."""
        copied = values.to(self._device, copy=True)
        with self._contact():
            self._reduce(copied)
        return copied.to(values.device)

    def mean(self, total: th.Tensor, weight: float) -> th.Tensor:
        """Reduce once, with one number more."""
        sums = th.cat((total, total.new_full((1,), weight)))
        with self._contact():
            self._reduce(sums)
        return sums[:-1] / sums[-1]

    def _gather_into(self, stacked: th.Tensor, sent: th.Tensor) -> None:
        dist.all_gather(list(stacked), sent)

    def _reduce(self, values: th.Tensor) -> None:
        """Add up in place."""
        dist.all_reduce(values)

    def gather_objects(self, value: T) -> list[T]:
        """Pickle, and take two all-gathers: of lengths and of contents."""
        values: list[Any] = [None] * self.size
        with self._contact():
            dist.all_gather_object(values, value)
        return values

    def broadcast_object(self, value: T) -> T:
        """Pickle, and take two broadcasts."""
        values = [value if self.is_first else None]
        with self._contact():
            dist.broadcast_object_list(values, src=0)
        return values[0]  # type: ignore[return-value]  # None has been replaced

    def broadcast(self, tensors: Sequence[th.Tensor]) -> None:
        """Take a broadcast for each tensor."""
        with self._contact():
            for tensor in tensors:
                received = tensor.detach().contiguous()
                dist.broadcast(received.flatten().view(th.uint8), src=0)  # of any type
                tensor.detach().copy_(received)

    def mean_gradients(
        self, gradients: Sequence[th.Tensor | None], parameters: Sequence[th.Tensor], n: float
    ) -> list[th.Tensor | None]:
        """Reduce once, with a number more for each tensor: whether any rank has one, which the host must know."""
        pairs = [*zip(gradients, parameters, strict=True)]
        parts = [(th.zeros_like(parameter) if gradient is None else gradient).flatten() for gradient, parameter in pairs]
        is_there = parts[0].new_tensor([gradient is not None for gradient in gradients])
        *means, counts = th.split(self.mean(th.cat([*parts, is_there]), n), [*map(len, parts), len(parts)])
        zipped = zip(means, parameters, (counts > 0.0).tolist(), strict=True)
        return [mean.view_as(parameter) if is_used else None for mean, parameter, is_used in zipped]

    def in_step(self, minibatches: Iterable[T], share: Share) -> Iterator[tuple[T, float]]:
        """Fill up what is short, and refuse other numbers than agreed."""
        own, n_given = iter(minibatches), 0
        for n_given, minibatch in enumerate(own, start=1):
            if n_given > share.n_here:
                break
            yield minibatch, 1.0
        if n_given != share.n_here:
            raise ValueError(
                f"The rollout buffer's get({share.batch_size}) gives {n_given} minibatches or more, but its size makes "
                f"{share.n_here}; ranks must know how many there are. Have it give all transitions, each once."
            )
        for _ in range(share.n_steps - share.n_here):
            yield minibatch, 0.0

    def agree(self, check: Callable[[], None]) -> None:
        """Gather what went wrong."""
        fault = None
        try:
            check()
        except ValueError as error:
            fault = str(error)
        if self.gather(th.tensor(fault is not None)).any():
            faults = [f"rank {rank}: {text}" for rank, text in enumerate(self.gather_objects(fault)) if text is not None]
            raise ValueError("\n".join(faults))

    def compare(self, values: dict[str, Any], what: str) -> None:
        """Gather, and compare with the first rank's."""
        first, *others = self.gather_objects(values)
        parted = {
            rank: [name for name in first | other if first.get(name, "absent") != other.get(name, "absent")]
            for rank, other in enumerate(others, start=1)
            if other != first
        }
        if parted:
            rank, names = next(iter(parted.items()))
            other = others[rank - 1]
            shown = ", ".join(f"{name} ({other.get(name)!r}, not {first.get(name)!r})" for name in names[:3])
            raise RanksPartedError(
                f"Ranks {', '.join(map(str, parted))} of {self.size} differ from rank 0 in {what}: rank {rank} in {shown}. "
                "Run the same script with the same settings, libraries, kind of processor and number of threads everywhere."
            )

    @contextmanager
    def together(self) -> Iterator[None]:
        """Write last words, and close the connections on which others may be waiting."""
        self._require_company()
        try:
            yield
        except BaseException as error:
            if self._store is not None and not isinstance(error, RanksPartedError):
                with suppress(RuntimeError):  # the store's host has gone
                    self._store.set(f"{LAST_WORDS}{self.rank}", f"{type(error).__name__}: {error}"[:2000])
            self._has_left = self._store is not None  # a group that the script has made is still there
            self._leave()
            raise

    @contextmanager
    def _contact(self) -> Iterator[None]:
        """Say what is known if a rank does not answer."""
        self._require_company()
        try:
            yield
        except RuntimeError as error:
            said = "".join(f"\n  rank {rank} ended with {words}" for rank, words in self._last_words().items())
            raise RanksPartedError(
                f"Rank {self.rank} of {self.size} has lost contact with the others: {error}{said}\n"
                "A rank has ended, or has not answered within the process group's timeout; the launcher's report names it. "
                "The policy is as it was after the last update. Start the script again: with a ResumableCheckpoint it goes on "
                "from the last checkpoint, under `torchrun --max-restarts` by itself."
            ) from error

    def _require_company(self) -> None:
        if self._has_left:
            raise RuntimeError("This rank left the others after an error; start the script again to go on together.")

    def _last_words(self) -> dict[int, str]:
        said: dict[int, str] = {}
        if self._store is not None:
            with suppress(RuntimeError):  # the store's host has gone
                keys = {rank: f"{LAST_WORDS}{rank}" for rank in range(self.size)}
                said = {rank: self._store.get(key).decode() for rank, key in keys.items() if self._store.check([key])}
        return said


class WorldOverGloo(World):
    """Several processes on CPUs. What is short goes through the first rank, which adds up in the order of the ranks."""

    def _gather_into(self, stacked: th.Tensor, sent: th.Tensor) -> None:
        if self.is_first:
            self._receive_all(stacked, sent)
            self._send_all(stacked)
        else:
            dist.send(sent, 0)
            dist.recv(stacked, 0)

    def _reduce(self, values: th.Tensor) -> None:
        if values.numel() * values.element_size() > SHORT:
            super()._reduce(values)
        elif self.is_first:
            parts = values.new_empty(self.size, *values.shape)
            self._receive_all(parts, values)
            th.sum(parts, 0, out=values)
            self._send_all(values)
        else:
            dist.send(values, 0)
            dist.recv(values, 0)

    def _receive_all(self, parts: th.Tensor, own: th.Tensor) -> None:
        parts[0] = own
        _finish([dist.irecv(parts[rank], rank) for rank in range(1, self.size)])

    def _send_all(self, values: th.Tensor) -> None:
        _finish([dist.isend(values, rank) for rank in range(1, self.size)])


def _finish(works: Iterable[Any]) -> None:
    for work in works:
        work.wait()


ALONE = Communicator()


def fingerprint(tensors: Iterable[th.Tensor]) -> th.Tensor:
    """
    Tell tensors apart by their bits.

    :param tensors: of any types and shapes, on one device
    :return: a number for each, the same for the same bits in the same places
    """
    return th.stack([_checksum(tensor.detach()) for tensor in tensors])


def _checksum(tensor: th.Tensor) -> th.Tensor:
    """Add up a tensor's bits, mixed and each with a factor of its own, modulo 2^64."""
    real = th.view_as_real(tensor) if tensor.is_complex() else tensor
    integers = {1: th.uint8, 2: th.int16, 4: th.int32, 8: th.int64}
    bits = real.contiguous().flatten().view(integers[real.element_size()]).long().mul(MIXER)
    factors = th.arange(len(bits), device=bits.device).mul(2).add(1)
    return bits.bitwise_xor(bits >> 32).mul(factors).sum()
