import time

import pytest
import torch as th
import torch.distributed as dist
from helpers.ranks import RankFailedError, in_ranks, in_threads

from sb3_trpo.parallel.communicator import ALONE, Communicator
from sb3_trpo.parallel.distributed import connect
from sb3_trpo.parallel.faults import (
    LONGEST_REPORT,
    FaultReports,
    RanksPartedError,
    check_on_all_ranks,
    leaving_on_error,
    lost_contact,
)


def test_every_rank_reads_what_others_have_reported():
    store = dist.HashStore()
    first, second = (FaultReports(store, rank, 2) for rank in range(2))
    assert first.read() == {}
    second.write(KeyError("oh"))
    first.write(RanksPartedError("rank 1 has ended"))  # no report: it ends only because the other did
    assert first.read() == second.read() == {1: "KeyError: 'oh'"}
    first.write(ValueError("x" * 10 * LONGEST_REPORT))
    assert len(second.read()[0]) == LONGEST_REPORT


class BrokenStore:
    """Its host has ended."""

    def set(self, key, value):
        raise RuntimeError("connection closed")

    check = get = lambda self, key: self.set(key, None)


def test_a_store_that_has_ended_hides_no_other_error():
    reports = FaultReports(BrokenStore(), 0, 2)
    reports.write(KeyError("oh"))
    assert reports.read() == {}


def test_lost_contact_is_explained_by_the_reports():
    error = lost_contact(RuntimeError("closed"), ALONE, {1: "KeyError: 'oh'", 2: "OSError: disk"})
    assert str(error).startswith("Rank 0 of 1 has lost contact with the others: closed\n  rank 1 ended with KeyError: 'oh'\n")
    assert "\n  rank 2 ended with OSError: disk\n" in str(error)


class Left(Communicator):
    error = None

    def leave(self, error):
        self.error = error


def test_a_rank_leaves_the_others_on_any_error_and_only_then():
    communicator, error = Left(), KeyboardInterrupt()
    with leaving_on_error(communicator):
        pass
    assert communicator.error is None
    with pytest.raises(KeyboardInterrupt), leaving_on_error(communicator):
        raise error
    assert communicator.error is error


def test_a_rank_that_is_alone_raises_its_error_as_it_is():
    error = ValueError("no good")

    def check():
        raise error

    with pytest.raises(ValueError, match=r"^no good$") as caught:
        check_on_all_ranks(check, ALONE)
    assert caught.value is error


@pytest.mark.parametrize(("faulty", "message"), [
    ([], None),
    ([1], "rank 1: bad 1"),
    ([0, 2], "rank 0: bad 0\nrank 2: bad 2"),
])  # fmt: skip
def test_a_check_that_fails_on_some_ranks_fails_on_all(faulty, message):
    def check(communicator):
        def fail():
            if communicator.rank in faulty:
                raise ValueError(f"bad {communicator.rank}")

        try:
            check_on_all_ranks(fail, communicator)
        except ValueError as error:
            return str(error)
        return None

    assert in_threads(3, check) == [message] * 3


def raise_on_one_rank(rank, culprit):
    communicator = connect(None, th.device("cpu"))
    communicator.sum(th.tensor(0))
    try:
        with leaving_on_error(communicator):
            if rank == culprit:
                time.sleep(0.3)
                raise KeyError("the env broke")
            communicator.sum(th.tensor(1))
    finally:
        time.sleep(1.0 if rank == 0 else 0.0)  # this process holds the store; under torchrun the launcher does


@pytest.mark.parametrize(("size", "culprit"), [(3, 1), (2, 0)])
def test_ranks_that_wait_for_one_that_raises_learn_why(size, culprit):
    start = time.monotonic()
    with pytest.raises(RankFailedError) as failed:
        in_ranks(size, raise_on_one_rank, culprit)
    assert time.monotonic() - start < 60  # and not the half hour after which torch gives up
    texts = failed.value.texts
    assert texts[culprit].startswith("KeyError: 'the env broke'")
    waiting = [text for rank, text in enumerate(texts) if rank != culprit]
    assert all(text.startswith("RanksPartedError") and "has lost contact" in text for text in waiting)
    assert all(f"rank {culprit} ended with KeyError: 'the env broke'" in text for text in waiting)
