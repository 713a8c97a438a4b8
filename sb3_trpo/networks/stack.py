"""
A plain stack of layers with its derivatives by hand: no autograd graph, and the modules' own weight tensors.

======  =====================================================================
x       input of a layer; for the first layer, the features
W, b    weight and bias of a layer, the module's own tensors
a       pre-activation, affine in x: ``W x + b``
h       ``activation(a)``, the input of the next layer
J       derivative of the last h in all W and b
v, u    tangent of all W and b; cotangent of the last h
delta   derivative of ``u^T h`` in a
======  =====================================================================
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch as th

from sb3_trpo.networks.activations import Activation
from sb3_trpo.networks.affine import Affine, Dense, WithInput


class Layer(NamedTuple):
    """An affine map with its tensors, and the activation after it."""

    affine: Affine
    weight: th.Tensor
    bias: th.Tensor | None
    activation: Activation


def identity(layer: Layer) -> tuple[object, ...]:
    """
    Describe what a layer computes and with which tensors.

    :param layer: the layer
    :return: equal for layers that do the same with the very same tensors
    """
    return layer.affine, id(layer.weight), id(layer.bias), id(layer.activation)


class Intermediates(NamedTuple):
    """
    What a forward pass keeps for the derivatives.

    :param hidden: x of all layers but the first
    :param slope_inputs: for each layer, a or h, whichever the slope of its activation is computed from
    :param output: the last h
    """

    hidden: list[th.Tensor]
    slope_inputs: list[th.Tensor]
    output: th.Tensor


@dataclass(frozen=True)
class Stack:
    """Layers in a row. Vectors in the space of its tensors are lists like :attr:`tensors`."""

    layers: tuple[Layer, ...]

    @property
    def is_dense(self) -> bool:
        """Whether there is no convolution in it."""
        return all(isinstance(layer.affine, Dense) for layer in self.layers)

    @property
    def n_outputs(self) -> int:
        """Number of columns of the last h."""
        last = self.layers[-1]
        return len(last.weight) + (last.weight.shape[1] if isinstance(last.affine, WithInput) else 0)

    @property
    def tensors(self) -> list[th.Tensor]:
        """All W and b, layer by layer."""
        return [tensor for layer in self.layers for tensor in (layer.weight, layer.bias) if tensor is not None]

    def with_tensors(self, tensors: Sequence[th.Tensor]) -> Stack:
        """
        Build the same stack on other tensors.

        :param tensors: like :attr:`tensors`
        :return: the stack
        """
        pairs = zip(self.layers, self.by_layer(tensors), strict=True)
        return Stack(tuple(layer._replace(weight=weight, bias=bias) for layer, (weight, bias) in pairs))

    def split(self, n_layers: int) -> tuple[Stack, Stack]:
        """
        Cut the stack in two.

        :param n_layers: number of layers in the first part
        :return: both parts; a part without layers returns its input
        """
        return Stack(self.layers[:n_layers]), Stack(self.layers[n_layers:])

    def __call__(self, x: th.Tensor) -> th.Tensor:
        """
        Compute the last h, bit for bit as the modules do: the policy measured here is the policy that acts.

        :param x: features, left unchanged
        :return: shape ``(n, n_outputs)``
        """
        for layer in self.layers:
            x = layer.activation.function(layer.affine(x, layer.weight, layer.bias))
        return x

    def forward(self, x: th.Tensor) -> Intermediates:
        """
        Compute the last h, with the same bits, and keep what the derivatives need.

        :param x: features. They are not kept, because they may take more memory than the observations they come from
        :return: the intermediate results
        """
        h, inputs, slope_inputs = x, [], []
        for layer in self.layers:
            inputs.append(layer.affine.arranged(h))
            a = layer.affine(inputs[-1], layer.weight, layer.bias)
            h = layer.activation.function(a)
            slope_inputs.append(a if layer.activation.slope_from_input else h)
        return Intermediates(inputs[1:], slope_inputs, h)

    def jvp(self, x: th.Tensor, intermediates: Intermediates, v: Sequence[th.Tensor]) -> th.Tensor:
        """
        Compute ``J v``, layer by layer: ``da = dW x + db + W dx`` and ``dh = slope * da``.

        :param x: the features of the forward pass
        :param intermediates: what it kept
        :param v: like :attr:`tensors`
        :return: shape ``(n, n_outputs)``
        """
        tangent = None
        inputs = [x, *intermediates.hidden]
        for layer, x_l, kept, (dw, db) in zip(self.layers, inputs, intermediates.slope_inputs, self.by_layer(v), strict=True):
            da = layer.affine.product(x_l, dw, db)
            if tangent is not None:
                da = layer.affine.add(da, tangent, layer.weight)
            tangent = layer.activation.times_slope(da, kept)
        assert tangent is not None
        return tangent

    def vjp(self, x: th.Tensor, intermediates: Intermediates, u: th.Tensor, out: Sequence[th.Tensor]) -> th.Tensor:
        """
        Compute ``J^T u``, summed over the batch, by backpropagation.

        :param x: the features of the forward pass
        :param intermediates: what it kept
        :param u: shape ``(n, n_outputs)``
        :param out: tensors like :attr:`tensors`, to write the result to
        :return: derivative of ``u^T h`` in a of the first layer, for :meth:`vjp_features`
        """
        inputs = [x, *intermediates.hidden]
        rows = list(zip(self.layers, inputs, intermediates.slope_inputs, self.by_layer(out), strict=True))
        delta = u
        for layer, x_l, kept, (dw, db) in reversed(rows):
            delta = layer.activation.times_slope(_arranged_as(kept, u), kept)
            layer.affine.vjp_weight(delta, x_l, dw)
            if db is not None:
                layer.affine.vjp_bias(delta, db)
            if layer is not self.layers[0]:  # few need the cotangent of the features
                u = layer.affine.vjp_input(delta, x_l, layer.weight)
        return delta

    def vjp_features(self, x: th.Tensor, delta: th.Tensor) -> th.Tensor:
        """
        Differentiate ``u^T h`` in the features.

        :param x: the features
        :param delta: the result of :meth:`vjp`
        :return: a tensor like the features
        """
        first = self.layers[0]
        return first.affine.vjp_input(delta, x, first.weight)

    def with_last_input(self) -> Stack:
        """
        Build a stack that also returns the input of its last layer.

        :return: the stack; its last layer, which must be dense and without activation, passes its input on
        """
        *others, last = self.layers
        return Stack((*others, last._replace(affine=WithInput())))

    def by_layer(self, tensors: Sequence[th.Tensor]) -> list[tuple[th.Tensor, th.Tensor | None]]:
        """
        Group tensors by layer.

        :param tensors: like :attr:`tensors`
        :return: W and b of each layer
        """
        remaining = iter(tensors)
        return [(next(remaining), None if layer.bias is None else next(remaining)) for layer in self.layers]


def _arranged_as(image: th.Tensor, rows: th.Tensor) -> th.Tensor:
    """
    Give what a dense layer returns the shape of the image below it, and the image's order in memory.

    Kernels for tensors in different orders take ten times as long.
    """
    return rows if rows.shape == image.shape else th.empty_like(image).copy_(rows.view_as(image))
