"""
How ranks learn that something went wrong on one of them.

A rank that fails cannot send a message: the others are waiting inside some other exchange. It writes a report into the store
of the process group and closes its connections instead. That ends the exchange on the other ranks, which then read the report.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import torch as th

from sb3_trpo.parallel.communicator import Communicator

if TYPE_CHECKING:  # torch may be built without it
    from torch._C._distributed_c10d import Store

KEY = "sb3_trpo/fault_of_rank_{}"
"""Key of a rank's report in the store."""
LONGEST_REPORT = 2000
"""Characters of an error's text that a report keeps."""


class RanksPartedError(RuntimeError):
    """The ranks are no longer together: one has ended or hangs, or its settings or parameters differ from the others'."""


class FaultReports:
    """
    Reports of why ranks have ended, in the store of the process group.

    :param store: of the process group, which outlives its connections
    :param rank: of this process
    :param size: number of ranks
    """

    def __init__(self, store: Store, rank: int, size: int) -> None:
        self._store = store
        self._own_key = KEY.format(rank)
        self._keys = [KEY.format(each) for each in range(size)]

    def write(self, error: BaseException) -> None:
        """
        Report what ends this rank.

        :param error: a rank that only ends because another did has nothing to report
        """
        if not isinstance(error, RanksPartedError):
            with suppress(RuntimeError):  # the process that holds the store has ended
                self._store.set(self._own_key, f"{type(error).__name__}: {error}"[:LONGEST_REPORT])

    def read(self) -> dict[int, str]:
        """
        Collect the reports so far.

        :return: texts by rank
        """
        reports: dict[int, str] = {}
        with suppress(RuntimeError):  # the process that holds the store has ended
            for rank, key in enumerate(self._keys):
                if self._store.check([key]):  # get() would wait for it
                    reports[rank] = self._store.get(key).decode()
        return reports


def lost_contact(error: Exception, communicator: Communicator, reports: dict[int, str]) -> RanksPartedError:
    """
    Explain why an exchange failed.

    :param error: torch's or the kernel's, which know only that a connection has ended or that time is up
    :param communicator: of the rank that noticed
    :param reports: reports of the ranks that have ended, by rank
    :return: what to raise
    """
    reported = "".join(f"\n  rank {rank} ended with {text}" for rank, text in reports.items())
    return RanksPartedError(
        f"Rank {communicator.rank} of {communicator.size} has lost contact with the others: {error}{reported}\n"
        "A rank has ended, or its machine has not answered in time (distributed_timeout); the launcher's report names it. "
        "The policy is that of the last finished step. Start the script again: with a ResumableCheckpoint it continues from "
        "the last checkpoint, and under `torchrun --max-restarts` it does so by itself."
    )


@contextmanager
def leaving_on_error(communicator: Communicator) -> Iterator[None]:
    """
    Leave the other ranks if anything is raised inside, so that they stop waiting for this one.

    :param communicator: connects this rank to the others
    """
    try:
        yield
    except BaseException as error:
        communicator.leave(error)
        raise


def check_on_all_ranks(check: Callable[[], None], communicator: Communicator) -> None:
    """
    Run a check that fails on every rank if it fails on one, so that no rank continues and waits for one that has stopped.

    :param check: raises a ``ValueError`` if something is wrong on this rank
    :param communicator: connects this rank to the others
    :raises ValueError: if it fails on any rank, with the messages of all ranks on which it does
    """
    if communicator.size == 1:
        check()
        return
    fault = None
    try:
        check()
    except ValueError as error:
        fault = str(error)
    if communicator.gather(th.tensor(fault is not None)).any():  # texts are only exchanged if there are any
        faults = [f"rank {rank}: {text}" for rank, text in enumerate(communicator.gather_objects(fault)) if text is not None]
        raise ValueError("\n".join(faults))
