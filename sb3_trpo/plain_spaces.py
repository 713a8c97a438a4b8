"""
Spaces that SB3's policies and buffers do not take as they are, in a form that they do.

Options may start at any number (``Discrete(3, start=5)``), choices and bits may lie in a table (``MultiDiscrete([[2, 3],
[4, 5]])``), and a Box may hold one number without an axis. The *plain* space has options from 0 on and one axis; policies and
buffers are made for it. Environments, and whoever calls ``predict``, see the space as it is.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium import spaces

Observation = np.ndarray | dict[str, np.ndarray]


class PlainSpaces:
    """
    The plain spaces of an environment, and the way from and to its own.

    :param observation_space: of the environment
    :param action_space: of the environment
    """

    def __init__(self, observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> None:
        self.observation_space = plain(observation_space)
        self.action_space = plain(action_space)
        self._observations = None if self.observation_space is observation_space else observation_space
        self._actions = None if self.action_space is action_space else action_space

    def encode(self, observations: Any) -> Any:
        """
        Bring observations into the plain space.

        :param observations: of the environment's space, one or several along leading axes
        :return: the same where the spaces are
        """
        return observations if self._observations is None else to_plain(self._observations, observations)

    def decode(self, actions: np.ndarray) -> np.ndarray:
        """
        Bring actions into the environment's space.

        :param actions: of the plain space, one or several along leading axes
        :return: the same where the spaces are
        """
        return actions if self._actions is None else from_plain(self._actions, actions)


def plain(space: spaces.Space[Any]) -> spaces.Space[Any]:
    """
    Find the space that a policy can be made for.

    :param space: of observations or actions
    :return: the space itself, or its plain form
    """
    if isinstance(space, spaces.Dict):
        parts = {key: plain(part) for key, part in space.spaces.items()}
        return space if all(part is space.spaces[key] for key, part in parts.items()) else dict_of(parts)
    if isinstance(space, spaces.Discrete):
        return space if space.start == 0 else spaces.Discrete(int(space.n))
    if isinstance(space, spaces.MultiDiscrete):
        is_plain = space.nvec.ndim == 1 and not _start(space).any() and space.dtype == np.int64
        return space if is_plain else spaces.MultiDiscrete(space.nvec.ravel().astype(np.int64))  # sums fit into it
    if isinstance(space, spaces.MultiBinary):
        return space if isinstance(space.n, (int, np.integer)) else spaces.MultiBinary(int(np.prod(space.shape)))
    if isinstance(space, spaces.Box) and space.shape == ():
        return spaces.Box(space.low.reshape(1), space.high.reshape(1), dtype=space.dtype.type)
    return space


def dict_of(parts: dict[str, spaces.Space[Any]]) -> spaces.Dict:
    """
    Make a Dict space that keeps the order of its parts, in which policies join them; Gymnasium sorts those of a dict.

    :param parts: spaces by key
    :return: the space
    """
    return spaces.Dict(OrderedDict(parts))


def to_plain(space: spaces.Space[Any], values: Any) -> Any:
    """
    Bring values of a space into its plain form.

    :param space: as the environment has it
    :param values: one or several along leading axes; a dict of them for a Dict
    :return: likewise, in the plain space
    """
    if isinstance(space, spaces.Dict) and isinstance(values, Mapping):
        return {key: to_plain(part, values[key]) for key, part in space.spaces.items()}
    target, array = plain(space), np.asarray(values)
    if target is space:
        return values
    leading = array.shape[: array.ndim - len(_shape(space))]
    return np.asarray(array - _start(space), dtype=array.dtype).reshape((*leading, *_shape(target)))


def from_plain(space: spaces.Space[Any], values: np.ndarray) -> np.ndarray:
    """
    Bring values of the plain form back into a space.

    :param space: as the environment has it
    :param values: of its plain form, one or several along leading axes
    :return: likewise, in the space
    """
    leading = values.shape[: values.ndim - len(_shape(plain(space)))]
    dtype = space.dtype if isinstance(space, spaces.MultiDiscrete) else values.dtype
    return np.asarray(values.reshape((*leading, *_shape(space))) + _start(space), dtype=dtype)


def _start(space: spaces.Space[Any]) -> np.ndarray:
    """Give the lowest options, 0 for spaces without any."""
    return np.asarray(getattr(space, "start", 0))


def _shape(space: spaces.Space[Any]) -> tuple[int, ...]:
    assert space.shape is not None, "only a Dict or Tuple has none"
    return space.shape
