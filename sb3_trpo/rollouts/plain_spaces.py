"""
Observation and action spaces: which are supported, and conversion of those that SB3's policies and buffers cannot handle.

Options may start at any number (``Discrete(3, start=5)``), choices and bits may form a table (``MultiDiscrete([[2, 3],
[4, 5]])``), and a Box may hold a single number without an axis. The *plain* form of a space counts options from 0 and has
one axis. Policies and buffers use the plain form; environments and callers of ``predict`` see the original. The plain form of
a Tuple or Dict of actions is a :class:`~sb3_trpo.rollouts.hybrid_space.HybridSpace`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from gymnasium import spaces

from sb3_trpo.rollouts.hybrid_space import BASIC_SPACES, COMPOSITE_SPACES, HybridSpace, check_hybrid

Observation = np.ndarray | dict[str, np.ndarray]
"""Observations of all environments, an array of shape ``(n_envs, ...)`` or a dict of them."""


class PlainSpaces:
    """
    The plain spaces of an environment, and the conversions from and to its own.

    :param observation_space: original space of the environment
    :param action_space: original space of the environment
    """

    def __init__(self, observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> None:
        self.observation_space = plain(observation_space)
        is_hybrid = isinstance(action_space, COMPOSITE_SPACES)
        self.action_space = HybridSpace(action_space) if is_hybrid else plain(action_space)
        self._observations = None if self.observation_space is observation_space else observation_space
        self._actions = None if self.action_space is action_space else action_space

    def encode(self, observations: Any) -> Any:
        """
        Convert observations to the plain space.

        :param observations: in the original space, with any leading axes
        :return: in the plain space; the same object if the spaces are the same
        """
        return observations if self._observations is None else to_plain(self._observations, observations)

    def decode(self, actions: np.ndarray) -> Any:
        """
        Convert actions to the original space.

        :param actions: in the plain space, with any leading axes; at most one if the original is a Tuple or Dict
        :return: in the original space; the same object if the spaces are the same. Of a Tuple or Dict one action, or with a
            leading axis a list of them
        """
        if isinstance(self.action_space, HybridSpace):
            return self.action_space.decode(actions)
        return actions if self._actions is None else from_plain(self._actions, actions)


def plain(space: spaces.Space[Any]) -> spaces.Space[Any]:
    """
    Return the plain form of a space.

    :param space: observation or action space
    :return: the plain form, or the space itself if it is plain already
    """
    if isinstance(space, spaces.Dict):
        parts = {key: plain(part) for key, part in space.spaces.items()}
        return space if all(part is space.spaces[key] for key, part in parts.items()) else dict_of(parts)
    if isinstance(space, spaces.Discrete):
        return space if space.start == 0 else spaces.Discrete(int(space.n))
    if isinstance(space, spaces.MultiDiscrete):
        is_plain = space.nvec.ndim == 1 and not _start(space).any() and space.dtype == np.int64
        return space if is_plain else spaces.MultiDiscrete(space.nvec.ravel().astype(np.int64))  # int8 would overflow in sums
    if isinstance(space, spaces.MultiBinary):
        return space if isinstance(space.n, (int, np.integer)) else spaces.MultiBinary(int(np.prod(space.shape)))
    if isinstance(space, spaces.Box) and space.shape == ():
        return spaces.Box(space.low.reshape(1), space.high.reshape(1), dtype=space.dtype.type)
    return space


def dict_of(parts: dict[str, spaces.Space[Any]]) -> spaces.Dict:
    """
    Make a Dict space that keeps the order of its parts.

    Policies concatenate the parts in this order, and Gymnasium would sort those of an ordinary dict.

    :param parts: spaces by key
    :return: the space
    """
    return spaces.Dict(OrderedDict(parts))


def to_plain(space: spaces.Space[Any], values: Any) -> Any:
    """
    Convert values of a space to its plain form.

    :param space: original space
    :param values: in the original space, with any leading axes; a dict of them for a Dict
    :return: in the plain space
    """
    if isinstance(space, spaces.Dict) and isinstance(values, Mapping):
        return {key: to_plain(part, values[key]) for key, part in space.spaces.items()}
    target, array = plain(space), np.asarray(values)
    if target is space:
        return values
    leading = array.shape[: array.ndim - len(_shape(space))]
    # Subtracting the int64 start would widen smaller types.
    return np.asarray(array - _start(space), dtype=array.dtype).reshape((*leading, *_shape(target)))


def from_plain(space: spaces.Space[Any], values: np.ndarray) -> np.ndarray:
    """
    Convert values of the plain form back to a space.

    :param space: original space
    :param values: in the plain space, with any leading axes
    :return: in the original space
    """
    leading = values.shape[: values.ndim - len(_shape(plain(space)))]
    # The plain form of a MultiDiscrete is int64, whatever the type of the original.
    dtype = space.dtype if isinstance(space, spaces.MultiDiscrete) else values.dtype
    return np.asarray(values.reshape((*leading, *_shape(space))) + _start(space), dtype=dtype)


def check_env(env: Any, is_needed: bool) -> None:
    """
    Check that there is an environment.

    :param env: the constructor's argument
    :param is_needed: whether the model is to be set up; a saved one is loaded without an environment
    :raises ValueError: if there is none
    """
    if env is None and is_needed:
        raise ValueError(
            "env is None, but a new model needs an environment: give one, or its registered name. To use a saved model "
            "without any, TRPO.load(path)."
        )


def check_spaces_of(env: Any) -> None:
    """
    Check the spaces of an environment.

    Anything without Gymnasium spaces is left to SB3, which refuses it or, for OpenAI Gym's environments, wraps it.

    :param env: environment, vectorized or not
    :raises ValueError: if a space is not supported
    """
    observation_space, action_space = getattr(env, "observation_space", None), getattr(env, "action_space", None)
    if isinstance(observation_space, spaces.Space) and isinstance(action_space, spaces.Space):
        check_spaces(observation_space, action_space)


def check_spaces(observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> None:
    """
    Check that a policy can be made for these spaces. SB3 itself checks the type of the action space.

    :param observation_space: space of the environment
    :param action_space: space of the environment
    :raises ValueError: if a space is empty, or of a type that is not supported
    """
    is_dict = isinstance(observation_space, spaces.Dict)
    parts = observation_space.spaces if isinstance(observation_space, spaces.Dict) else {None: observation_space}
    supported = "Box, Discrete, MultiDiscrete and MultiBinary"
    if not parts:
        raise ValueError(f"The observation space is an empty Dict, but must hold at least one part, of {supported}.")
    for key, part in parts.items():
        name = f"observation space's part {key!r}" if is_dict else "observation space"
        if not isinstance(part, BASIC_SPACES):
            can_flatten = isinstance(spaces.flatten_space(observation_space), spaces.Box)  # Graph and Sequence cannot
            wrapper = f"gymnasium.wrappers.{'FlattenObservation' if can_flatten else 'TransformObservation'}"
            raise ValueError(
                f"The {name} is {part}, but policies read {supported}, or a Dict of these without nested Dicts. Convert the "
                f"rest to numbers in a wrapper of the environment, such as {wrapper}."
            )
        _check_size(name, part)
    if isinstance(action_space, COMPOSITE_SPACES):
        check_hybrid(action_space)
    elif isinstance(action_space, BASIC_SPACES):
        _check_size("action space", action_space)


def _check_size(name: str, space: spaces.Space[Any]) -> None:
    if 0 in (space.shape or ()):
        raise ValueError(f"The {name} is {space}, which has no entries, but must have at least one.")


def _start(space: spaces.Space[Any]) -> np.ndarray:
    """Return the smallest options of a space; 0 for spaces without options."""
    return np.asarray(getattr(space, "start", 0))


def _shape(space: spaces.Space[Any]) -> tuple[int, ...]:
    assert space.shape is not None, "only Dict and Tuple spaces have no shape"
    return space.shape


def map_parts(function: Callable[[np.ndarray], np.ndarray], observation: Observation) -> Observation:
    """
    Apply a function to each array of an observation.

    :param function: maps an array to an array
    :param observation: an array or a dict of arrays
    :return: the results, in the same form
    """
    if isinstance(observation, dict):
        return {key: function(part) for key, part in observation.items()}
    return function(observation)
