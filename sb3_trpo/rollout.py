"""The rollout as data for the update: checked for finiteness, read in chunks of bounded memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial, singledispatch
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from stable_baselines3.common.preprocessing import get_flattened_obs_dim
from stable_baselines3.common.type_aliases import PyTorchObs
from stable_baselines3.common.utils import obs_as_tensor

from sb3_trpo.distributed import ALONE, Ranks
from sb3_trpo.floats import as_float32
from sb3_trpo.inputs import Inputs, inputs_in
from sb3_trpo.plain_spaces import Observation


class ChunkLimits(NamedTuple):
    """
    How large a chunk may be.

    :param entries: of all its observations
    :param transitions: for hidden layers need memory too, however small the observations
    """

    entries: int
    transitions: int


GRAPH_LIMITS = ChunkLimits(2**24, 2**15)
"""For autograd, which must build the graphs of several chunks anew for each product: 594 stacks of 84x84x4, Atari's."""
PASS_LIMITS = ChunkLimits(2**20, 2**13)
"""For one pass without derivatives over the rollout, and for minibatches gathered ahead."""
CACHE_LIMITS = ChunkLimits(2**20, 2**11)
"""For stacks of layers on a CPU, which are quickest while a chunk's activations fit into its cache: 37 such stacks."""
ROUNDINGS = 16
"""Rounding errors that add up in one advantage: a GAE sum reaches about 1 / (1 - gamma * lambda) steps, 17 by default."""


DIRECT_BUFFERS: set[type[RolloutBuffer]] = {RolloutBuffer, DictRolloutBuffer}
"""Whose arrays may be read and written without calling them."""


class Transitions(NamedTuple):
    """
    Some transitions of a rollout, on the policy's device; the first dimension of everything counts them.

    :param inputs: what the policy acted on
    :param actions: as ``log_prob`` expects them
    :param old_log_prob: log-probability under the policy that acted, shape ``(n,)``
    :param advantages: as the surrogate weighs them, shape ``(n,)``
    :param weights: 1 for a transition and 0 for one that only fills up a sequence, shape ``(n,)``; ``None`` if all count
    :param n_padding: how many do not count
    """

    inputs: Inputs
    actions: th.Tensor
    old_log_prob: th.Tensor
    advantages: th.Tensor
    weights: th.Tensor | None = None
    n_padding: int = 0

    @property
    def weight(self) -> float:
        """How many transitions count."""
        return float(len(self.advantages) - self.n_padding)

    def total(self, terms: th.Tensor) -> th.Tensor:
        """
        Sum what was computed for each transition over those that count.

        :param terms: shape ``(n,)``
        :return: a scalar
        """
        return terms.sum() if self.weights is None else self.weights.dot(terms)


Chunk = Callable[[], Transitions]
"""Reads some transitions when called."""


def inputs_of(chunk: Chunk) -> Inputs:
    """
    Read what the policy acted on in a chunk.

    :param chunk: the chunk
    :return: its inputs alone
    """
    return chunk().inputs


def map_parts(function: Callable[[np.ndarray], np.ndarray], observation: Observation) -> Observation:
    """
    Apply a function to each array of an observation.

    :param function: from array to array
    :param observation: an array or a dict of them
    :return: likewise
    """
    if isinstance(observation, dict):
        return {key: function(part) for key, part in observation.items()}
    return function(observation)


def default_chunk_size(observation_space: spaces.Space[np.ndarray], limits: ChunkLimits) -> int:
    """
    Choose how many transitions to differentiate at a time.

    :param observation_space: images give small chunks, vectors large ones
    :param limits: how large they may be
    :return: at least 1
    """
    return int(np.clip(limits.entries // max(1, get_flattened_obs_dim(observation_space)), 1, limits.transitions))


Standardise = Callable[[RolloutBuffer, np.ndarray], tuple[float, float]]
"""Gives shift and scale for the advantages of some transitions of a buffer with (step, env) joined, by their indices."""


def as_they_are(buffer: RolloutBuffer, indices: np.ndarray) -> tuple[float, float]:
    """
    Leave advantages alone.

    :param buffer: a full rollout buffer
    :param indices: of the transitions
    :return: shift 0 and scale 1
    """
    return 0.0, 1.0


@singledispatch
def split_rollout(buffer: RolloutBuffer, every: int, chunk_size: int, standardise: Standardise = as_they_are) -> list[Chunk]:
    """
    Split every k-th transition of the rollout into chunks.

    Each call of a chunk copies it out of the buffer anew, so that only one is in memory at a time; a single chunk is kept.

    :param buffer: a full rollout buffer
    :param every: k
    :param chunk_size: transitions per chunk
    :param standardise: gives shift and scale of the advantages read
    :return: the chunks, in the buffer's order
    """
    join(buffer)
    indices = np.arange(0, buffer.buffer_size * buffer.n_envs, every)
    shift, scale = standardise(buffer, indices)

    def load(chosen: np.ndarray) -> Transitions:
        samples = buffer._get_samples(chosen)
        advantages = (samples.advantages - shift) * scale
        return Transitions(inputs_in(samples), taken(samples.actions, buffer), samples.old_log_prob, advantages)

    chunks = [partial(load, indices[start : start + chunk_size]) for start in range(0, len(indices), chunk_size)]
    return kept_if_single(chunks)


@singledispatch
def spread_inputs(buffer: RolloutBuffer, n: int) -> Inputs:
    """
    Read what the policy acted on in some transitions, spread evenly over the rollout.

    :param buffer: a full rollout buffer
    :param n: how many at most
    :return: the inputs
    """
    stride = math.ceil(buffer.buffer_size * buffer.n_envs / n)
    (spread,) = split_rollout(buffer, stride, n)
    return spread().inputs


def join(buffer: RolloutBuffer) -> None:
    """
    Have a buffer join (step, env) into one, env after env.

    :param buffer: a full rollout buffer
    """
    if not buffer.generator_ready:
        next(buffer.get(batch_size=1))  # draws from NumPy's generator, as sb3-contrib's read does


def kept_if_single(chunks: Sequence[Chunk]) -> list[Chunk]:
    """
    Let a single chunk be read once only.

    :param chunks: chunks that are read anew at each call
    :return: the chunks
    """
    return [cache(chunks[0])] if len(chunks) == 1 else [*chunks]


def taken(actions: th.Tensor, buffer: RolloutBuffer) -> th.Tensor:
    """
    Give actions the form that ``log_prob`` expects.

    :param actions: as the buffer keeps them, shape ``(n, n_dimensions)``
    :param buffer: whose they are
    :return: numbers of options, shape ``(n,)``, if the space is Discrete, else the same
    """
    return actions.long().flatten() if isinstance(buffer.action_space, spaces.Discrete) else actions


def standardisation(buffer: RolloutBuffer, indices: np.ndarray, ranks: Ranks = ALONE) -> tuple[float, float]:
    """
    Find what gives the advantages of some transitions, those of all ranks together, mean 0 and standard deviation 1.

    A spread within the rounding error of the values that the advantages were computed from is noise, which must not be blown
    up to a full step: its scale is 0.

    :param buffer: a full rollout buffer, with (step, env) joined
    :param indices: of the transitions
    :param ranks: which have other transitions each
    :return: shift and scale
    """
    n, mean, squares = pooled(buffer.advantages.reshape(-1)[indices], ranks)
    spread = math.sqrt(squares / (n - 1.0)) if n > 1.0 else 0.0
    largest = float(ranks.stack(th.tensor(np.abs(buffer.returns).max())).max())
    rounding = ROUNDINGS * np.finfo(np.float32).eps * largest
    return mean, 0.0 if spread <= rounding else 1.0 / (spread + 1e-8)


def pooled(values: np.ndarray, ranks: Ranks) -> tuple[float, float, float]:
    """
    Take the moments of what several ranks have.

    :param values: of this rank
    :param ranks: all
    :return: how many, their mean, and the sum of squares about it
    """
    values = values.astype(np.float64)
    own = len(values), values.sum(), np.square(values - values.mean()).sum()
    n, total, squares = ranks.stack(th.tensor(own, dtype=th.float64)).numpy().T
    mean = total.sum() / n.sum()
    return float(n.sum()), float(mean), float((squares + n * np.square(total / n - mean)).sum())


def observation_blocks(buffer: RolloutBuffer, size: int) -> Iterator[PyTorchObs]:
    """
    Read all observations in order.

    :param buffer: a full rollout buffer of SB3's own, with (step, env) joined
    :param size: transitions at a time
    :return: tensors, or dicts of them, on the buffer's device
    """
    for start in range(0, buffer.buffer_size * buffer.n_envs, size):
        rows = map_parts(itemgetter(slice(start, start + size)), buffer.observations)
        yield obs_as_tensor(rows, buffer.device)


def minibatches(
    buffer: RolloutBuffer, rows: th.Tensor, features: Callable[[th.Tensor], th.Tensor], batch_size: int, n_ahead: int
) -> Iterator[tuple[th.Tensor, th.Tensor]]:
    """
    Pass once over the rollout in random order: the order in which SB3's buffer would go, from the same generator.

    :param buffer: a full rollout buffer of SB3's own, with (step, env) joined
    :param rows: what the features are made of, one row per transition
    :param features: maps rows to the features
    :param batch_size: transitions at a time
    :param n_ahead: transitions gathered at a time
    :return: pairs of features and returns, the latter of shape ``(n, 1)``
    """
    size = int(batch_size)
    returns = th.from_numpy(buffer.returns.reshape(-1, 1)).to(buffer.device)
    order = th.from_numpy(np.random.permutation(len(returns)))
    for chosen in th.split(order, max(1, n_ahead // size) * size):
        gathered = rows.index_select(0, chosen.to(rows.device)), returns.index_select(0, chosen.to(buffer.device))
        for part, part_of_returns in zip(*(th.split(tensor, size) for tensor in gathered), strict=True):
            yield features(part), part_of_returns


def compute_advantages(buffer: RolloutBuffer, last_values: np.ndarray, last_dones: np.ndarray) -> None:
    """
    Fill in advantages and lambda-returns as the buffer's own method does (GAE, arXiv:1506.02438, eq. 16).

    ``A_t = delta_t + c_t A_{t+1}`` is solved for all t at once, by spans that double: after k passes A_t holds ``2^k`` terms
    and c_t the product of as many.

    :param buffer: with rewards, values and episode starts of all steps
    :param last_values: values after the last step, shape ``(n_envs,)``
    :param last_dones: which episodes ended with it, shape ``(n_envs,)``
    """
    with np.errstate(all="ignore"):  # far decay is 0 by intent, and what is not finite is named by require_finite()
        alive = 1.0 - np.concatenate((buffer.episode_starts[1:], last_dones[None]), dtype=np.float64)
        next_values = np.concatenate((buffer.values[1:], last_values[None]))
        advantages = buffer.rewards + buffer.gamma * alive * next_values - buffer.values
        decay = buffer.gamma * buffer.gae_lambda * alive
        span = 1
        while span < len(advantages):
            advantages[:-span] += decay[:-span] * advantages[span:]
            decay[:-span] *= decay[span:]
            span *= 2
        buffer.advantages = advantages.astype(np.float32)
        buffer.returns = buffer.advantages + buffer.values


def require_finite(buffer: RolloutBuffer, last_observation: Observation | None = None) -> None:
    """
    Refuse a rollout with numbers that would poison the update.

    :param buffer: a full rollout buffer
    :param last_observation: the one after the last step, whose value the returns build on; ``None`` if not known
    :raises ValueError: if observations, rewards, values, returns or advantages are not finite, naming the first place
    """
    _require_finite(buffer, _named(buffer.observations))
    fault = None if last_observation is None else non_finite_observation(last_observation, buffer.buffer_size)
    if fault is not None:
        raise fault
    _require_finite(buffer, {name: getattr(buffer, name) for name in ("rewards", "values", "returns", "advantages")})


def _require_finite(buffer: RolloutBuffer, quantities: dict[str, np.ndarray]) -> None:
    for name, array in quantities.items():
        place = _first_non_finite(array)
        if place is not None:
            joined = buffer.generator_ready and name != "rewards"  # SB3 joins (step, env) of the others
            env, step = divmod(place[0], buffer.buffer_size) if joined else (place[1], place[0])
            raise _non_finite_error(name, array[place], env, step, place[1 if joined else 2 :])


def cut_off_at(info: dict[str, Any]) -> Any:
    """
    Find the last observation of an episode that a time limit cut off, whose value the returns build on.

    :param info: of an environment whose episode has ended
    :return: the observation, ``None`` if the episode ended by itself
    """
    return info.get("terminal_observation") if info.get("TimeLimit.truncated", False) else None


def require_finite_end(info: dict[str, Any], env: int, step: int) -> None:
    """
    Refuse an episode whose last observation would poison the returns.

    :param info: of an environment whose episode has ended
    :param env: index of the environment
    :param step: index of the step in the rollout
    :raises ValueError: if a time limit cut it off at an observation that is not finite
    """
    last = cut_off_at(info)
    for name, part in ({} if last is None else _named(last)).items():
        array = np.asarray(part)
        place = _first_non_finite(array)
        if place is not None:
            raise _non_finite_error(name.replace("observations", "terminal_observation"), array[place], env, step, place)


def unfit_observation(observation: Any, space: spaces.Space[Any], n_envs: int, step: int) -> ValueError | None:
    """
    Look for an observation that no policy can act on.

    :param observation: one observation per environment
    :param space: that they should be in
    :param n_envs: number of environments
    :param step: index of the step in the rollout
    :return: the error to raise, saying what is wrong with it, or ``None`` if nothing is
    """
    parts = space.spaces if isinstance(space, spaces.Dict) else {None: space}
    for key, part in parts.items():
        seen = np.asarray(observation if key is None else observation.get(key))
        if seen.dtype == object or seen.shape != (n_envs, *part.shape):  # type: ignore[misc]  # SB3 knows no space without a shape
            return ValueError(
                f"The environment returned {'an observation' if key is None else f'observations[{key!r}]'} of shape "
                f"{seen.shape[1:]} and type {seen.dtype} at step {step} of the rollout, but its space is {part}. "
                "The policy is unchanged. Mend the environment; gymnasium.utils.env_checker.check_env finds such faults."
            )
    return non_finite_observation(observation, step)


def unfit_type(policy: th.nn.Module) -> ValueError | None:
    """
    Look for weights that observations do not fit.

    :param policy: that could not act
    :return: the error to raise, or ``None`` if all are of the type in which SB3 shows observations
    """
    others = {parameter.dtype for parameter in policy.parameters() if parameter.is_floating_point()} - {th.float32}
    if not others:
        return None
    return ValueError(
        f"The policy's parameters are of the type {next(iter(others))}, but SB3 shows it observations in torch.float32, and "
        "it could not act. Call model.policy.float(), or let its features extractor convert them."
    )


def non_finite_observation(observation: Observation, step: int) -> ValueError | None:
    """
    Look for an observation that no policy can act on.

    :param observation: one observation per environment
    :param step: index of the step in the rollout
    :return: the error to raise, naming the environment, or ``None`` if all is finite
    """
    for name, array in _named(observation).items():
        place = _first_non_finite(array)
        if place is not None:
            return _non_finite_error(name, array[place], place[0], step, place[1:])
    return None


def _named(observation: Observation) -> dict[str, np.ndarray]:
    if isinstance(observation, dict):
        return {f"observations[{key!r}]": part for key, part in observation.items()}
    return {"observations": observation}


def _first_non_finite(array: np.ndarray) -> tuple[int, ...] | None:
    """Find a number that is not finite for the policy, which sees float32 whatever the type of the space."""
    if not np.issubdtype(array.dtype, np.floating):
        return None
    are_finite = np.isfinite(as_float32(array))
    return None if are_finite.all() else tuple(int(index) for index in np.argwhere(~are_finite)[0])


def _non_finite_error(name: str, value: float, env: int, step: int, entry: tuple[int, ...]) -> ValueError:
    shown = f"{value}" if not math.isfinite(value) else f"{value}, too large for the float32 that policies see,"
    where = f", in entry {[*entry]}" if entry else ""
    return ValueError(
        f"The rollout holds non-finite {name}: {shown} in environment {env} at step {step} of the rollout{where}. The update "
        "was not begun: the policy is unchanged and can be saved. Mend the environment, or wrap it in "
        "stable_baselines3.common.vec_env.VecCheckNan to see where such a number first appears. A reward at a time limit "
        "includes the value of the episode's last observation."
    )
