"""Recurrent layers computed by kernels that can be differentiated twice."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from torch import nn

from sb3_trpo.networks.cudnn import without_cudnn
from sb3_trpo.networks.lstm import forward_of, has_formula


@contextmanager
def twice_differentiable(module: nn.Module) -> Iterator[None]:
    """
    Have recurrent layers computed by what has a second derivative, for :func:`linearise` needs one.

    cuDNN's recurrent kernels have none, nor a forward mode, and no first one in evaluation mode. LSTMs are computed as
    ``lstm.py`` has it, with fused kernels all the same; other recurrent layers without cuDNN. Convolutions keep cuDNN.

    :param module: whatever is run inside
    """
    with ExitStack() as stack:
        for layer in module.modules():
            if has_formula(layer):
                stack.enter_context(_computed_by(layer, forward_of(layer)))
            elif isinstance(layer, nn.RNNBase):
                stack.enter_context(_computed_by(layer, partial(_without_cudnn, layer, layer.forward)))
        yield


def _without_cudnn(layer: nn.Module, forward: Callable[..., Any], *inputs: Any, **named: Any) -> Any:
    with without_cudnn(next(layer.parameters()).device):
        return forward(*inputs, **named)


@contextmanager
def _computed_by(layer: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Put something in the place of a layer's ``forward`` for a while."""
    before = vars(layer).get("forward")
    vars(layer)["forward"] = forward
    try:
        yield
    finally:
        if before is None:
            del vars(layer)["forward"]
        else:
            vars(layer)["forward"] = before
