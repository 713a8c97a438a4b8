"""Several tensors seen as one flat vector, and written back in place."""

from __future__ import annotations

from collections.abc import Sequence

import torch as th

from sb3_trpo.numerics.torch_private import copy_all


def flatten(tensors: Sequence[th.Tensor]) -> th.Tensor:
    """
    Join tensors into one vector; differentiable.

    :param tensors: tensors of any shapes, on one device
    :return: their elements in order, shape ``(total,)``
    """
    return th.cat([tensor.reshape(-1) for tensor in tensors])


def unflatten(vector: th.Tensor, like: Sequence[th.Tensor]) -> list[th.Tensor]:
    """
    Cut a vector into views shaped like the given tensors: the inverse of :func:`flatten`.

    :param vector: shape ``(total,)``
    :param like: tensors whose shapes to take; their elements must sum to ``total``
    :return: views of ``vector``
    :raises RuntimeError: if the sizes do not add up
    """
    pieces = th.split(vector, [tensor.numel() for tensor in like])
    return [piece.view_as(tensor) for piece, tensor in zip(pieces, like, strict=True)]


@th.no_grad()
def assign(parameters: Sequence[th.Tensor], values: Sequence[th.Tensor]) -> None:
    """
    Overwrite parameters in place with the given values.

    The parameters keep their storage, so optimizers and tied modules see the change. All are written in one call into torch:
    Python delivers interrupts between bytecodes only, hence none can leave half of them written.

    :param parameters: tensors to overwrite
    :param values: as many tensors of the same shapes
    """
    if parameters:
        copy_all(parameters, values)
