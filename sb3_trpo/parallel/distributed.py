"""Communicators over ``torch.distributed``: gloo for a policy on the CPU, NCCL for one on CUDA."""

from __future__ import annotations

import os
import pickle
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch as th
import torch.distributed as dist

from sb3_trpo.parallel.communicator import ALONE, Communicator
from sb3_trpo.parallel.faults import lost_contact
from sb3_trpo.parallel.launcher import PROCESS_GROUP, ProcessGroup
from sb3_trpo.parallel.transport.mesh import MOST_BYTES, Mesh

T = TypeVar("T")

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
        except (RuntimeError, OSError) as error:
            # Pending messages in its frames would keep the connections open, on which other ranks may be waiting for this one.
            traceback.clear_frames(error.__traceback__)
            faults = self._group.faults if self._group is not None else None
            raise lost_contact(error, self, faults.read() if faults is not None else {}) from error


class GlooCommunicator(DistributedCommunicator):
    """Several processes on CPUs, with short messages over connections of their own if this package has formed the group."""

    def gather_objects(self, value: T) -> list[T]:
        """Pickle, and gather lengths and contents."""
        pickled = th.frombuffer(bytearray(pickle.dumps(value)), dtype=th.uint8)
        lengths = self.gather(th.tensor(len(pickled)))
        padded = pickled.new_zeros(int(lengths.max()))
        padded[: len(pickled)] = pickled
        rows = zip(self.gather(padded), lengths.tolist(), strict=True)
        return [pickle.loads(row[:length].numpy().tobytes()) for row, length in rows]

    @property
    def _mesh(self) -> Mesh | None:
        return self._group.mesh if self._group is not None else None

    def _reduce(self, values: th.Tensor) -> None:
        if self._mesh is not None and values.nbytes <= MOST_BYTES:
            values.copy_(self._mesh.sum(values))
        else:
            super()._reduce(values)

    def _gather_into(self, stacked: th.Tensor, sent: th.Tensor) -> None:
        if self._mesh is None:
            super()._gather_into(stacked, sent)
        else:
            stacked.copy_(self._mesh.gather(sent))
