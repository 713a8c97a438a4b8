"""
Layers that can be differentiated twice: the one place that knows which kernels cannot.

Fisher products by autograd need second derivatives. cuDNN's recurrent kernels have neither those nor a forward mode. In
evaluation mode, in which a policy is updated, they have not even a first derivative. Fused attention has only a first one. So,
on any device:

==============================  ====================================================================================
plain LSTM                      ``lstm.py``: fused kernels, which cuDNN may provide, and a formula for ``J v``
GRU, RNN, any other LSTM        without cuDNN, by kernels that autograd differentiates twice
attention                       by matrix products and softmax, in modules and in calls of torch's function
convolutions, everything else   unchanged
==============================  ====================================================================================
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch as th
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from sb3_trpo.networks.lstm import is_supported, linearisable_lstm


class SharedSwitch:
    """
    Keeps something switched while any thread needs it so: torch has one switch for the whole process.

    Layers that other threads run in the meantime use the other kernels as well. That changes their rounding and speed only.

    :param switched: makes a context in which it is switched
    """

    def __init__(self, switched: Callable[[], AbstractContextManager[object]]) -> None:
        self._switched = switched
        self._lock = threading.Lock()
        self._n_inside = 0
        self._stack = ExitStack()

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Switch inside a block; the last thread to leave restores what the first one found."""
        with self._lock:
            if self._n_inside == 0:
                self._stack.enter_context(self._switched())
            self._n_inside += 1
        try:
            yield
        finally:
            with self._lock:
                self._n_inside -= 1
                if self._n_inside == 0:
                    self._stack.close()


@contextmanager
def _cudnn_disabled() -> Iterator[None]:
    before, th.backends.cudnn.enabled = th.backends.cudnn.enabled, False
    try:
        yield
    finally:
        th.backends.cudnn.enabled = before


@contextmanager
def _attention_unfused() -> Iterator[None]:
    """Keep torch from fused attention, and from the fused transformer layers that it has for evaluation without gradients."""
    before = th.backends.mha.get_fastpath_enabled()
    th.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        th.backends.mha.set_fastpath_enabled(before)


CUDNN_OFF = SharedSwitch(_cudnn_disabled)
UNFUSED_ATTENTION = SharedSwitch(_attention_unfused)


def without_cudnn(device: th.device) -> AbstractContextManager[None]:
    """
    Keep torch from using cuDNN inside a block.

    :param device: device of the layer that runs inside; on a CPU there is no cuDNN, and nothing is switched
    :return: the context manager
    """
    return CUDNN_OFF() if device.type == "cuda" else nullcontext()


@contextmanager
def twice_differentiable(module: nn.Module) -> Iterator[None]:
    """
    Make layers twice differentiable inside a block, by the table above.

    :param module: the module that runs inside, usually a policy
    """
    with ExitStack() as stack:
        stack.enter_context(UNFUSED_ATTENTION())  # always: a module may call torch's function
        for layer in module.modules():
            if is_supported(layer):
                stack.enter_context(_replaced_forward(layer, partial(_lstm_forward, layer, layer.forward)))
            elif isinstance(layer, nn.RNNBase):
                stack.enter_context(_replaced_forward(layer, partial(_forward_without_cudnn, layer, layer.forward)))
        yield


def _lstm_forward(layer: nn.LSTM, forward: Callable[..., Any], input: Any, hx: Any = None) -> Any:  # noqa: A002  # as in torch
    """Compute a plain LSTM by our formula where it applies and a derivative may be needed."""
    if not th.is_grad_enabled():  # the layer's own kernel is the fastest
        return forward(input, hx)
    if not isinstance(input, th.Tensor) or input.dim() != 3:  # a packed sequence, or one without a batch dimension
        return _forward_without_cudnn(layer, forward, input, hx)
    return linearisable_lstm(layer, input, hx)


def _forward_without_cudnn(layer: nn.Module, forward: Callable[..., Any], *inputs: Any, **keywords: Any) -> Any:
    """Compute a layer by its ``forward`` with cuDNN off."""
    with without_cudnn(next(layer.parameters()).device):
        return forward(*inputs, **keywords)


@contextmanager
def _replaced_forward(layer: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Replace a layer's ``forward`` inside a block, then restore the instance as it was: a user may have patched it."""
    before = vars(layer).get("forward")
    vars(layer)["forward"] = forward
    try:
        yield
    finally:
        if before is None:
            del vars(layer)["forward"]
        else:
            vars(layer)["forward"] = before
