"""TODO."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from sb3_trpo.numerics.torch_private import default_validate_args, set_default_validate_args


class ValidationSwitch:
    """
    Stands in for torch's process-wide switch: false in the threads that are inside :func:`unvalidated`, as before in others.

    :param before: what the switch was
    """

    def __init__(self, before: object) -> None:
        self.before = before
        self.threads: Counter[int] = Counter()
        """How many times each thread is inside."""

    def __bool__(self) -> bool:
        return bool(self.before) and threading.get_ident() not in self.threads

    def __eq__(self, other: object) -> bool:  # for code that reads the switch and puts it back
        return bool(self) == other

    __hash__ = object.__hash__


_SWITCHING = threading.Lock()


@contextmanager
def unvalidated() -> Iterator[None]:
    """Let torch's distributions accept any number in this thread: a candidate with NaN is to be judged, not to raise."""
    thread = threading.get_ident()
    with _SWITCHING:
        found = default_validate_args()
        switch = found if isinstance(found, ValidationSwitch) else ValidationSwitch(found)
        switch.threads[thread] += 1
        set_default_validate_args(switch)
    try:
        yield
    finally:
        with _SWITCHING:
            switch.threads[thread] -= 1
            switch.threads += Counter()  # without those that have left
            if not switch.threads and default_validate_args() is switch:  # else someone has set it meanwhile
                set_default_validate_args(switch.before)
