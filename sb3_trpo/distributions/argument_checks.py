"""
Switching off the argument checks of torch's distributions.

torch has one switch for the whole process, ``Distribution.set_default_validate_args``. Here it is off in some threads only,
so that training in one thread does not switch off the checks in another.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from sb3_trpo.numerics.torch_private import default_validate_args, set_default_validate_args


class ValidationSwitch:
    """
    Takes the place of torch's switch: false in the threads that are inside :func:`unvalidated`, unchanged in others.

    :param before: the value of torch's switch
    """

    def __init__(self, before: object) -> None:
        self.before = before
        self.threads: Counter[int] = Counter()
        """Number of :func:`unvalidated` blocks that each thread is in."""

    def __bool__(self) -> bool:
        return bool(self.before) and threading.get_ident() not in self.threads

    def __eq__(self, other: object) -> bool:  # for code that reads the switch and restores it
        return bool(self) == other

    __hash__ = object.__hash__


_SWITCHING = threading.Lock()


@contextmanager
def unvalidated() -> Iterator[None]:
    """Let torch's distributions accept any number in this thread: a candidate with NaN is rejected without an error."""
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
            switch.threads += Counter()  # drops threads with a count of 0
            if not switch.threads and default_validate_args() is switch:  # unless someone has set it in the meantime
                set_default_validate_args(switch.before)
