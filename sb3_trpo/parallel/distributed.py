"""Communicators over ``torch.distributed``: gloo for a policy on the CPU, NCCL for one on CUDA."""

from __future__ import annotations

import os
import traceback
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

import torch as th
import torch.distributed as dist

from sb3_trpo.parallel.communicator import ALONE, Communicator
from sb3_trpo.parallel.faults import lost_contact
from sb3_trpo.parallel.launcher import PROCESS_GROUP, ProcessGroup

if TYPE_CHECKING:  # torch may be built without it
    from torch.distributed import Work

T = TypeVar("T")

SHORT_MESSAGE = 2**17
"""
Bytes up to which sums over gloo go through the first rank, for any number of ranks: 32,768 numbers.

gloo's all-reduce goes around a ring of P ranks in ``2 (P - 1)`` steps, and each waits for a process to wake up. On two cores,
1,000 numbers take 0.8, 4.5 and 16 ms with 2, 4 and 8 ranks, but 0.3, 1.8 and 2.7 ms through the first rank, which needs about
as much CPU time for it as for its part of the ring. The ring is quicker from between 100,000 and 1,000,000 numbers on; from
between 30,000 and 100,000 on it takes the first rank less CPU time, which matters more if each rank has a core. More than
eight ranks have not been measured (``benchmarks/scaling/collectives.py``).
"""

PATIENCE = timedelta(days=1)
"""
How long gloo waits for a rank whose machine answers: for a long evaluation of the first rank, or a slow environment.

gloo's 30 minutes would end such a run. NCCL keeps its 10 minutes, as its connections are not probed.
"""


def connect(distributed: bool | None, device: th.device, timeout: float = 60.0) -> Communicator:
    """
    Connect this process to the other ranks of its run.

    :param distributed: ``None`` connects if a launcher has started several processes or there is a process group of several,
        ``True`` always, ``False`` never. A process group that the script has made is used and left as it is
    :param device: of the policy
    :param timeout: seconds until this rank notices that another one's machine has vanished. It holds for the connections of a
        process group that this package has formed
    :return: the communicator
    :raises ValueError: if there is no launcher to connect by
    :raises RuntimeError: if this process has left the others after an error
    """
    exists = dist.is_available() and dist.is_initialized()
    size = dist.get_world_size() if exists else int(os.environ.get("WORLD_SIZE", "1"))
    if distributed is False or (distributed is None and size == 1):
        return ALONE
    if device.type == "cuda" and device.index is None:
        th.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))  # NCCL wants a GPU for each rank
    if not exists:
        PROCESS_GROUP.form(PATIENCE if device.type != "cuda" else None)
    PROCESS_GROUP.connections.end_if_silent(timeout)
    kind = DistributedCommunicator if device.type == "cuda" else GlooCommunicator
    return kind(device, PROCESS_GROUP if PROCESS_GROUP.is_open else None)


class DistributedCommunicator(Communicator):
    """
    Several processes, by torch's collectives.

    :param device: of the policy. Tensors are moved there to be exchanged, because NCCL takes none from the CPU
    :param group: the process group; ``None`` if the script has made it, since it is then never left
    """

    def __init__(self, device: th.device, group: ProcessGroup | None) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self._device = device
        self._group = group

    def sum(self, values: th.Tensor) -> th.Tensor:
        """Reduce a copy."""
        copied = values.to(self._device, copy=True)
        with self._exchange():
            self._reduce(copied)
        return copied.to(values.device)

    def mean(self, total: th.Tensor, weight: float) -> th.Tensor:
        """Send the weight in the same message as the sums."""
        sums = th.cat((total, total.new_full((1,), weight)))
        with self._exchange():
            self._reduce(sums)
        return sums[:-1] / sums[-1]

    def gather(self, values: th.Tensor) -> th.Tensor:
        """Use one all-gather."""
        sent = values.detach().to(self._device).contiguous()
        stacked = sent.new_empty(self.size, *sent.shape)
        with self._exchange():
            self._gather_into(stacked, sent)
        return stacked.to(values.device)

    def gather_objects(self, value: T) -> list[T]:
        """Pickle, and use two all-gathers: for lengths and contents."""
        values = [value] * self.size
        with self._exchange():
            dist.all_gather_object(values, value)
        return values

    def broadcast(self, tensors: Sequence[th.Tensor]) -> None:
        """Use one broadcast for each tensor."""
        with self._exchange():
            for tensor in tensors:
                received = tensor.detach().contiguous()
                dist.broadcast(received.flatten().view(th.uint8), src=0)  # as bytes: gloo does not know every type
                tensor.detach().copy_(received)

    def broadcast_object(self, value: T) -> T:
        """Pickle, and use two broadcasts: for the length and the contents."""
        values = [value]
        with self._exchange():
            dist.broadcast_object_list(values, src=0)
        return values[0]

    def leave(self, error: BaseException) -> None:
        """Leave the process group if it is ours."""
        if self._group is not None:
            self._group.leave(error)

    def _reduce(self, values: th.Tensor) -> None:
        """Add up over the ranks, in place."""
        dist.all_reduce(values)

    def _gather_into(self, stacked: th.Tensor, sent: th.Tensor) -> None:
        dist.all_gather(list(stacked), sent)

    @contextmanager
    def _exchange(self) -> Iterator[None]:
        """Turn an error of torch's into one that explains which rank has failed, and why."""
        if self._group is not None:
            self._group.require_not_left()
        try:
            yield
        except RuntimeError as error:
            # Pending messages in its frames would keep the connections open, on which other ranks may be waiting for this one.
            traceback.clear_frames(error.__traceback__)
            faults = self._group.faults if self._group is not None else None
            raise lost_contact(error, self, faults.read() if faults is not None else {}) from error


class GlooCommunicator(DistributedCommunicator):
    """
    Several processes on CPUs, with short messages through the first rank.

    An update exchanges many short vectors, where latency is all that counts: two hops through the first rank beat the ring.
    The first rank waits for all of them and adds them up in the order of the ranks, so the bits do not depend on which message
    came first.
    """

    def _reduce(self, values: th.Tensor) -> None:
        if values.numel() * values.element_size() > SHORT_MESSAGE:
            super()._reduce(values)
        else:
            self.reduce_through_first_rank(values)

    def reduce_through_first_rank(self, values: th.Tensor) -> None:
        """
        Add up over the ranks, in place, in the order of the ranks.

        :param values: terms of this rank, then the sums
        """
        if self.is_first:
            parts = values.new_empty(self.size, *values.shape)
            self._receive_all(parts, values)
            th.sum(parts, 0, out=values)
            self._send_all(values)
        else:
            dist.send(values, 0)
            dist.recv(values, 0)

    def _gather_into(self, stacked: th.Tensor, sent: th.Tensor) -> None:
        if self.is_first:
            self._receive_all(stacked, sent)
            self._send_all(stacked)
        else:
            dist.send(sent, 0)
            dist.recv(stacked, 0)

    def _receive_all(self, parts: th.Tensor, own: th.Tensor) -> None:
        """Receive from all other ranks at the same time, each into its own row."""
        parts[0] = own
        _wait_for(dist.irecv(parts[rank], rank) for rank in range(1, self.size))

    def _send_all(self, values: th.Tensor) -> None:
        _wait_for(dist.isend(values, rank) for rank in range(1, self.size))


def _wait_for(works: Iterable[Work | None]) -> None:
    """Start everything before waiting for any of it."""
    for work in [*works]:
        assert work is not None, "a process outside the default group has no communicator"
        work.wait()
