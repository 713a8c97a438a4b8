"""Running a layer without cuDNN, which torch can only switch off for the whole process, from several threads."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch as th


class CudnnSwitch:
    """
    Counts who needs cuDNN to be off: the first one switches it off, the last one puts it back as it was.

    Layers that other threads run meanwhile do without it too, which changes rounding and time, and nothing else.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._n_inside = 0
        self._before = True

    def off(self) -> None:
        """Switch it off."""
        with self._lock:
            if self._n_inside == 0:
                self._before, th.backends.cudnn.enabled = th.backends.cudnn.enabled, False
            self._n_inside += 1

    def back(self) -> None:
        """Put it back, if nobody else needs it to be off."""
        with self._lock:
            self._n_inside -= 1
            if self._n_inside == 0:
                th.backends.cudnn.enabled = self._before


SWITCH = CudnnSwitch()


@contextmanager
def without_cudnn(device: th.device) -> Iterator[None]:
    """
    Keep torch from using cuDNN; on a CPU, where there is none, nothing is switched.

    :param device: of the layer that is run inside
    """
    if device.type != "cuda":
        yield
        return
    SWITCH.off()
    try:
        yield
    finally:
        SWITCH.back()
