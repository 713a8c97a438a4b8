"""Several tensors as one flat vector, and back."""

from __future__ import annotations

from collections.abc import Sequence

import torch as th

from sb3_trpo.numerics.torch_private import copy_all


def flatten(tensors: Sequence[th.Tensor]) -> th.Tensor:
    """
    Concatenate tensors into one vector, differentiably.

    :param tensors: tensors of any shapes, on one device
    :return: their elements in row-major order, shape ``(n_elements,)``
    """
    return th.cat([tensor.reshape(-1) for tensor in tensors])


def unflatten(vector: th.Tensor, like: Sequence[th.Tensor]) -> list[th.Tensor]:
    """
    Split a vector into views with the shapes of given tensors: the inverse of :func:`flatten`.

    :param vector: shape ``(n_elements,)``
    :param like: tensors with ``n_elements`` elements together
    :return: views of ``vector``
    :raises RuntimeError: if the numbers of elements differ
    """
    pieces = th.split(vector, [tensor.numel() for tensor in like])
    return [piece.view_as(tensor) for piece, tensor in zip(pieces, like, strict=True)]


@th.no_grad()
def assign(parameters: Sequence[th.Tensor], values: Sequence[th.Tensor]) -> None:
    """
    Overwrite parameters in place with the given values.

    The parameters keep their storage, so optimizers and tied modules see the change. A single call into torch writes all of
    them: Python delivers interrupts only between bytecodes, so none can leave only some of them written.

    :param parameters: tensors to overwrite
    :param values: as many tensors of the same shapes
    """
    if parameters:
        copy_all(parameters, values)
