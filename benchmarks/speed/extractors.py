"""Features extractors of one's own, for images that are too small for SB3's NatureCNN."""

from __future__ import annotations

from itertools import pairwise

import torch as th
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn


class SmallImageExtractor(BaseFeaturesExtractor):
    """
    Three convolutions with kernels of 2x2, then a linear layer: what people use on MiniGrid's views of 7x7 cells.

    :param observation_space: images with channels first
    :param features_dim: number of features
    """

    def __init__(self, observation_space: spaces.Box, features_dim: int = 128) -> None:
        super().__init__(observation_space, features_dim)
        channels = (observation_space.shape[0], 16, 32, 64)
        layers: list[nn.Module] = []
        for n_in, n_out in pairwise(channels):
            layers += [nn.Conv2d(n_in, n_out, kernel_size=2), nn.ReLU()]
        height, width = (side - 3 for side in observation_space.shape[1:])  # each convolution takes one from either side
        linear = nn.Linear(channels[-1] * height * width, features_dim)
        self.layers = nn.Sequential(*layers, nn.Flatten(), linear, nn.ReLU())

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return self.layers(observations)


class ResidualImageExtractor(BaseFeaturesExtractor):
    """
    A 2x2 convolution, a residual block, then a linear layer with LayerNorm: no stack of plain layers.

    :param observation_space: images with channels first
    :param features_dim: number of features
    """

    def __init__(self, observation_space: spaces.Box, features_dim: int = 128) -> None:
        super().__init__(observation_space, features_dim)
        n_in, height, width = observation_space.shape
        self.first = nn.Sequential(nn.Conv2d(n_in, 32, kernel_size=2), nn.ReLU())
        self.block = nn.Sequential(nn.Conv2d(32, 32, kernel_size=3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, kernel_size=1))
        self.linear = nn.Linear(32 * (height - 1) * (width - 1), features_dim)
        self.norm = nn.LayerNorm(features_dim)

    def forward(self, observations: th.Tensor) -> th.Tensor:
        hidden = self.first(observations)
        hidden = th.relu(hidden + self.block(hidden))
        return th.relu(self.norm(self.linear(hidden.flatten(1))))
