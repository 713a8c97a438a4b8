"""The fast loop leaves what SB3's leaves, also where callbacks look on, stop it or change things."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from helpers.envs import BOX_ACTION, DICT, IMAGE, VECTOR, RandomEnv
from helpers.rollouts import (
    ACTIONS,
    N_STEPS,
    OBSERVATIONS,
    PER_STEP,
    Episodes,
    Intervening,
    Trace,
    assert_close,
    assert_same,
    both,
    episodes,
    model_of,
    several,
    wrong,
)
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, EveryNTimesteps
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize
from torch import nn

from sb3_trpo import TRPO
from sb3_trpo.rollouts.collection.environment import RolloutEnv
from sb3_trpo.rollouts.collection.fast_collector import FastCollector


@pytest.mark.parametrize("n_envs", [1, 2, 5])
@pytest.mark.parametrize("action_space", ACTIONS.values(), ids=ACTIONS)
def test_the_buffer_is_sb3s_for_every_action_space(action_space, n_envs):
    ours, theirs = both(lambda: model_of(several(n_envs, action_space=action_space)), n_rollouts=2)
    assert_same(ours, theirs)
    assert len(episodes(ours.model)[1]) >= 2 * n_envs


@pytest.mark.parametrize("action_space", [BOX_ACTION, spaces.Discrete(4)], ids=["box", "choice"])
@pytest.mark.parametrize("observation_space", OBSERVATIONS.values(), ids=OBSERVATIONS)
def test_the_buffer_is_sb3s_for_every_observation_space(observation_space, action_space):
    assert_same(*both(lambda: model_of(several(2, observation_space, action_space)), n_rollouts=2))


@pytest.mark.parametrize("n_envs", [1, 3])
@pytest.mark.parametrize(
    "kwargs",
    [
        *({"activation_fn": kind} for kind in (nn.Identity, nn.Tanh, nn.ReLU, nn.ELU, nn.LeakyReLU, nn.SiLU, nn.GELU)),
        {"net_arch": []},
        {"net_arch": {"pi": [7], "vf": [5, 64, 3]}},
        {"net_arch": [64, 64], "share_features_extractor": True, "log_std_init": 1.0},
    ],
    ids=str,
)
def test_the_buffer_is_sb3s_for_every_network(kwargs, n_envs):
    assert_same(*both(lambda: model_of(several(n_envs, action_space=BOX_ACTION), policy_kwargs={"net_arch": [8]} | kwargs)))


def test_the_buffer_is_sb3s_without_biases():
    def make() -> TRPO:
        model = model_of(several(2, action_space=BOX_ACTION))
        for module in model.policy.modules():
            if isinstance(module, nn.Linear):
                module.bias = None
        return model

    assert_same(*both(make))


@pytest.mark.parametrize("coefficients", [(1.0, 1.0), (0.9, 0.0), (0.5, 0.7)], ids=str)
def test_time_limits_are_bootstrapped_by_the_discount_of_the_model(coefficients):
    gamma, gae_lambda = coefficients

    def make() -> TRPO:
        env = gym.wrappers.TimeLimit(gym.make("Pendulum-v1").unwrapped, 6)
        return model_of(env, gamma=gamma, gae_lambda=gae_lambda)

    ours, theirs = both(make, n_rollouts=2)
    assert_same(ours, theirs)
    assert len(episodes(ours.model)[0]) == 2 * N_STEPS // 6


@pytest.mark.parametrize("action_space", [BOX_ACTION, spaces.Discrete(4)], ids=["box", "choice"])
@pytest.mark.parametrize("observation_space", [VECTOR, spaces.Dict(far=BOX_ACTION, near=VECTOR)], ids=["vector", "vectors"])
def test_the_buffer_is_sb3s_behind_a_normaliser(observation_space, action_space):
    assert_same(*both(lambda: model_of(VecNormalize(several(2, observation_space, action_space))), n_rollouts=3))


class OtherBuffer(RolloutBuffer):
    """Not SB3's."""


@pytest.mark.parametrize(
    "make",
    [
        lambda: model_of(several(2, DICT)),
        lambda: model_of(several(2, IMAGE), policy="CnnPolicy", n_steps=4),
        lambda: model_of(several(2, action_space=BOX_ACTION), use_sde=True, sde_sample_freq=4),
        lambda: model_of(several(2), rollout_buffer_class=OtherBuffer),
        lambda: model_of(several(2), policy_kwargs={"activation_fn": nn.Softplus}),
    ],
    ids=["image and vector", "cnn", "gSDE", "buffer", "activation"],
)
def test_anything_that_the_fast_loop_does_not_know_is_left_to_sb3s(make):
    assert_same(*both(make, quick=False))


def test_a_rollout_shorter_than_the_buffer_is_left_to_sb3():
    model = model_of(several(2))
    model._setup_learn(100)
    assert [knows(model, n) for n in (N_STEPS, N_STEPS - 1)] == [True, False]


def knows(model: TRPO, n_steps: int) -> bool:
    env = RolloutEnv(model.env, model._plain)
    return FastCollector(model, env, model.rollout_buffer, model.acting_policies).can_collect(n_steps)


def test_observations_that_the_buffer_would_round_are_left_to_sb3():
    model = model_of(several(2, OBSERVATIONS["integers"]))
    model._setup_learn(100)
    model._last_obs = model._last_obs + 0.5
    assert not knows(model, N_STEPS)


@pytest.mark.parametrize("dtype", [np.float16, np.int64, np.uint8])
def test_actions_are_stored_as_they_were_sampled(dtype):
    ours, theirs = both(lambda: model_of(several(2, action_space=spaces.Box(0, 5, (2,), dtype))), n_rollouts=2)
    assert_same(ours, theirs)
    drawn = ours.buffers[0].actions
    assert drawn.dtype == np.float32
    assert (drawn < 0.0).any()  # not clipped
    assert (drawn % 1.0 != 0.0).all()


class Reader(BaseCallback):
    """Copies what it finds in ``locals`` at each step and at the ends of rollouts."""

    def __init__(self, look: Callable[[dict[str, Any], str], Any] = lambda variables, name: variables[name]) -> None:
        super().__init__()
        self.look, self.steps, self.ends = look, [], []

    def seen(self) -> dict[str, Any]:
        return {name: copy.deepcopy(self.look(self.locals, name)) for name in PER_STEP}

    def _on_step(self) -> bool:
        self.steps.append(self.seen())
        return True

    def _on_rollout_end(self) -> None:
        self.ends.append(copy.deepcopy({name: self.locals[name] for name in ("values", "log_probs", "obs_tensor", "n_steps")}))


class Composite(BaseCallback):
    """A user's own list of callbacks."""

    def __init__(self, child: BaseCallback, keep: Callable[[list[BaseCallback]], Any]) -> None:
        super().__init__()
        self.parts, self.kept = [child], keep([child])

    def _init_callback(self) -> None:
        self.model_of_parts = [part.init_callback(self.model) for part in self.children()]

    def children(self) -> list[BaseCallback]:
        return list(self.kept.values() if isinstance(self.kept, dict) else self.kept)

    def update_child_locals(self, locals_: dict[str, Any]) -> None:
        for child in self.children():
            child.update_locals(locals_)

    def _on_step(self) -> bool:
        return all(child.on_step() for child in self.children())


class Hidden(Composite):
    """Keeps its children in a container alone."""

    def __init__(self, child: BaseCallback, keep: Callable[[list[BaseCallback]], Any]) -> None:
        super().__init__(child, keep)
        del self.parts


NESTED: dict[str, Callable[[BaseCallback], BaseCallback]] = {
    "alone": lambda reader: reader,
    "in a list": lambda reader: CallbackList([Reader(), reader]),
    "in a list in a list": lambda reader: CallbackList([CallbackList([reader])]),
    "every few steps": lambda reader: EveryNTimesteps(5, reader),
    "every few steps in a list": lambda reader: CallbackList([EveryNTimesteps(5, reader)]),
    "in a composite's list": lambda reader: Hidden(reader, list),
    "in a composite's tuple": lambda reader: Hidden(reader, tuple),
    "in a composite's dict": lambda reader: Hidden(reader, lambda parts: dict(enumerate(parts))),
    "in a composite twice": lambda reader: Composite(reader, list),
}
LOOKS: dict[str, Callable[[dict[str, Any], str], Any]] = {
    "item": lambda variables, name: variables[name],
    "get": lambda variables, name: variables.get(name),
    "items": lambda variables, name: dict(variables.items())[name],
    "values": lambda variables, name: dict(zip(variables, variables.values(), strict=True))[name],
    "copy": lambda variables, name: variables.copy()[name],
    "dict": lambda variables, name: dict(variables)[name],
    "unpacked": lambda variables, name: {**variables}[name],
}


def assert_read_alike(
    action_space: spaces.Space,
    nest: Callable[[BaseCallback], BaseCallback] = NESTED["alone"],
    look: Callable[[dict[str, Any], str], Any] = LOOKS["item"],
) -> None:
    readers: list[Reader] = []

    def callback() -> BaseCallback:
        readers.append(Reader(look))
        return nest(readers[-1])

    assert_same(*both(lambda: model_of(several(2, action_space=action_space)), callback, n_rollouts=2))
    ours, theirs = readers
    assert len(ours.steps) == len(theirs.steps) > 2
    assert len(ours.ends) == len(theirs.ends)
    for one, other in zip([*ours.steps, *ours.ends], [*theirs.steps, *theirs.ends], strict=True):
        assert_close(one, other)


@pytest.mark.parametrize("action_space", ACTIONS.values(), ids=ACTIONS)
def test_a_callback_reads_the_variables_of_sb3s_loop(action_space):
    assert_read_alike(action_space)


@pytest.mark.parametrize("nest", NESTED.values(), ids=NESTED)
def test_a_callback_reads_them_wherever_it_is(nest):
    assert_read_alike(BOX_ACTION, nest)


@pytest.mark.parametrize("look", LOOKS.values(), ids=LOOKS)
def test_a_callback_may_read_them_in_any_way(look):
    assert_read_alike(BOX_ACTION, look=look)


def test_the_names_in_locals_are_sb3s():
    class Names(BaseCallback):
        def __init__(self) -> None:
            super().__init__()
            self.found = []

        def _on_step(self) -> bool:
            self.found.append(sorted(set(self.locals) - {"idx", "done", "terminal_obs", "terminal_value", "__class__"}))
            self.found += [name in self.locals for name in ("values", "log_probs", "obs_tensor", "nothing")]
            self.found += [self.locals.get("nothing"), self.locals.get("nothing", 1)]
            return True

    callbacks = [Names(), Names()]
    remaining = iter(callbacks)
    both(lambda: model_of(several(2)), lambda: next(remaining), n_rollouts=2)
    ours, theirs = callbacks
    assert ours.found == theirs.found


@pytest.mark.parametrize("n_rollouts", [1, 2])
def test_locals_at_the_start_of_a_rollout_can_be_read(n_rollouts):
    class AtStart(BaseCallback):
        def _on_rollout_start(self) -> None:
            found.append(copy.deepcopy(self.locals.get("values")))

        def _on_step(self) -> bool:
            return True

    found: list[th.Tensor | None] = []
    both(lambda: model_of(several(2)), AtStart, n_rollouts)
    assert found[0] is found[n_rollouts] is None
    if n_rollouts == 2:
        assert_close(found[1], found[3])


@wrong("share_locals puts a new dict in the place of the one that SB3 only ever updates")
def test_a_dict_of_locals_kept_from_the_start_of_training_goes_on():
    class Keeper(BaseCallback):
        def _on_training_start(self) -> None:
            self.kept = self.locals

        def _on_step(self) -> bool:
            return "rewards" in self.kept

    ours, theirs = both(lambda: model_of(several(2)), Keeper)
    assert (ours.complete, theirs.complete) == ([True], [True])


@pytest.mark.parametrize("at", [1, 6, 8, N_STEPS])
def test_a_callback_that_stops_leaves_the_buffer_as_sb3s_loop_does(at):
    ours, theirs = both(lambda: model_of(several(3)), lambda: Intervening(lambda _: False, (at,)))
    assert ours.complete == [False]
    assert ours.buffers[0].pos == at - 1
    assert_same(ours, theirs)


def test_a_callback_changes_the_rewards():
    def raise_rewards(callback: Intervening) -> None:
        callback.locals["rewards"] += 3.0

    ours, theirs = both(lambda: model_of(several(3)), lambda: Intervening(raise_rewards, tuple(range(0, N_STEPS, 2))))
    assert_same(ours, theirs)
    assert ours.buffers[0].rewards.max() > 3.0


@wrong("probabilities are computed late, from what the callback has made of the actions")
def test_a_callback_changes_the_stored_actions_alone():
    def overwrite(callback: Intervening) -> None:
        callback.locals["actions"][:] = 0.25

    assert_same(*both(lambda: model_of(several(3, action_space=BOX_ACTION)), lambda: Intervening(overwrite)))


@wrong("values, log_probs and bootstrapped rewards are written into the buffer only when the rollout ends")
def test_a_callback_finds_the_buffer_filled_so_far():
    found: list[np.ndarray] = []

    def read(callback: Intervening) -> None:
        buffer = callback.model.rollout_buffer
        found.append(np.stack([getattr(buffer, name) for name in ("values", "log_probs", "rewards")]))

    both(lambda: model_of(several(3)), lambda: Intervening(read, (N_STEPS,)))
    assert_close(*found)


class Faulty(RandomEnv):
    """The observation after two steps is not a number."""

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.n_steps += 1
        observation = self.observation_space.sample()
        return np.full_like(observation, np.nan) if self.n_steps == 2 else observation, 0.0, False, False, {}


@pytest.mark.parametrize("action_space", ACTIONS.values(), ids=ACTIONS)
def test_an_observation_that_is_nan_is_reported_with_its_place(action_space):
    with pytest.raises(ValueError, match="non-finite observations: nan in environment 0 at step 2 of the rollout"):
        Trace(lambda: model_of(Faulty(action_space=action_space)), by_sb3=False)


class Batched(VecEnv):
    """A thousand environments in a few arrays; the k-th one's episodes take k % 50 + 1 steps, every third is cut off."""

    def __init__(self, cut_off: bool = True) -> None:
        super().__init__(1000, VECTOR, BOX_ACTION)
        self.lengths, self.cut_off = np.arange(1000) % 50 + 1, cut_off

    def reset(self) -> np.ndarray:
        self.generator, self.ages = np.random.default_rng(0), np.zeros(1000, int)
        return self.observe()

    def observe(self) -> np.ndarray:
        return self.generator.normal(size=(1000, 3)).astype(np.float32)

    def step_async(self, actions: np.ndarray) -> None:
        self.actions = actions

    def step_wait(self) -> tuple[Any, Any, Any, Any]:
        self.ages += 1
        dones, last, infos = self.ages == self.lengths, self.observe(), [{} for _ in range(1000)]
        for index in np.flatnonzero(dones):
            infos[index] = {"terminal_observation": last[index], "TimeLimit.truncated": index % 3 == 0}
            infos[index] |= {"episode": {"r": float(index), "l": self.ages[index]}, "is_success": index % 2 == 0}
        self.ages[dones] = 0
        return self.observe(), self.actions.mean(1), dones, infos

    def close(self) -> None: ...
    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        return [None] * 1000

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None: ...
    def env_method(self, method_name: str, *args: Any, **kwargs: Any) -> list[Any]:
        return []

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        return [False] * 1000


def batched_model(n_steps: int = 11) -> TRPO:
    return model_of(Batched(), n_steps=n_steps, stats_window_size=3000)


def test_a_thousand_environments_fill_the_buffer_alike():
    assert_same(*both(batched_model, n_rollouts=2))


def test_only_environments_whose_episode_ended_are_searched_for_its_statistics(monkeypatch):
    given: list[tuple[int, bool]] = []
    update = TRPO._update_info_buffer

    def note(model: TRPO, infos: list[dict[str, Any]], dones: np.ndarray) -> None:
        given.append((len(infos), len(infos) == len(dones) and bool(np.all(dones))))
        update(model, infos, dones)

    monkeypatch.setattr(TRPO, "_update_info_buffer", note)
    trace = Trace(batched_model, by_sb3=False)
    n_ended = 20 * sum(11 // length for length in range(1, 51))
    assert sum(length for length, _ in given) == n_ended == len(trace.model.ep_info_buffer)
    assert all(ended for _, ended in given)


def test_an_episode_that_is_reported_before_the_end_is_counted():
    class Endless(gym.Wrapper):
        """Continues with the next episode by itself, as in meta-learning."""

        def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
            observation, reward, over, cut_off, info = self.env.step(action)
            if over or cut_off:
                observation, _ = self.env.reset()
            return observation, reward, False, False, info

    def make() -> TRPO:
        env = Episodes()
        env.observation_space.seed(0)
        return model_of(DummyVecEnv([lambda: Endless(Monitor(env))]))

    ours, theirs = both(make)
    assert len(theirs.model.ep_info_buffer) > 0
    assert_same(ours, theirs)


def model_with(gamma: float | None = None, **kwargs: Any) -> TRPO:
    model = model_of(gym.wrappers.TimeLimit(gym.make("Pendulum-v1").unwrapped, 6), **kwargs)
    model.gamma = gamma or model.gamma
    return model


def test_time_limits_are_bootstrapped_by_the_models_own_discount():
    ours, theirs = both(lambda: model_with(gamma=0.5))
    assert_same(ours, theirs)
    assert ours.model.rollout_buffer.gamma != 0.5


def test_a_last_observation_may_be_overwritten_by_the_environment():
    class Reusing(Batched):
        def step_wait(self) -> Any:
            observations, rewards, dones, infos = super().step_wait()
            if not hasattr(self, "last"):
                self.last = np.zeros((1000, 3), np.float32)
            for index, info in enumerate(infos):
                if "terminal_observation" in info:
                    self.last[index] = info["terminal_observation"]
                    info["terminal_observation"] = self.last[index]
            return observations, rewards, dones, infos

    assert_same(*both(lambda: model_of(Reusing())))


@pytest.mark.parametrize("n_rollouts", [1, 2])
def test_what_a_callback_changes_when_a_rollout_starts_counts_from_its_first_step(n_rollouts):
    class Changing(BaseCallback):
        def _on_rollout_start(self) -> None:
            self.model.policy.log_std = th.nn.Parameter(th.full((2,), -2.0))

        def _on_step(self) -> bool:
            return True

    ours, theirs = both(lambda: model_of(several(2, action_space=BOX_ACTION)), Changing, n_rollouts)
    assert_same(ours, theirs)


def test_a_hook_set_when_a_rollout_starts_is_called_and_the_start_is_announced_once():
    class Hooking(BaseCallback):
        starts, ends, calls = 0, 0, 0

        def count(self, *_: Any) -> None:
            self.calls += 1

        def _on_rollout_start(self) -> None:
            self.starts += 1
            self.model.policy.action_net.register_forward_hook(self.count)

        def _on_step(self) -> bool:
            return True

        def _on_rollout_end(self) -> None:
            self.ends += 1

    hooking = [Hooking(), Hooking()]
    left = iter(hooking)
    assert_same(*both(lambda: model_of(several(2)), lambda: next(left)))
    assert [(each.starts, each.ends, each.calls) for each in hooking] == [(1, 1, N_STEPS)] * 2


@pytest.mark.parametrize("name", ["add", "compute_returns_and_advantage"])
def test_a_patched_buffer_is_filled_by_sb3(name):
    model, calls = model_of(several(2)), []
    original = getattr(model.rollout_buffer, name)
    setattr(model.rollout_buffer, name, lambda *args, **kwargs: calls.append(None) or original(*args, **kwargs))
    model.learn(N_STEPS * 2)
    assert len(calls) == (N_STEPS if name == "add" else 1)


def test_observations_are_kept_as_the_policy_saw_them():
    class Batch(Batched):
        def __init__(self) -> None:
            super().__init__()
            self.observation_space = spaces.Box(-1.0, 1.0, self.observation_space.shape, np.float16)

    ours, theirs = both(lambda: model_of(Batch()))
    assert_same(ours, theirs)
    assert ours.buffers[0].observations.dtype == np.float32


def test_the_policy_is_in_evaluation_mode_while_it_collects():
    class Looking(BaseCallback):
        def _on_step(self) -> bool:
            modes.add(self.model.policy.training)
            return True

    modes: set[bool] = set()
    model = model_of(several(2))
    model.policy.set_training_mode(True)
    Trace(lambda: model, by_sb3=False, callback=Looking())
    assert modes == {False}


def test_an_overridden_update_locals_gets_the_variables_of_sb3s_loop():
    class Keeping(BaseCallback):
        kept: Any = None

        def update_locals(self, locals_: dict[str, Any]) -> None:
            super().update_locals(locals_)
            self.kept = {**locals_}

        def _on_step(self) -> bool:
            found.append({name: copy.deepcopy(self.kept[name]) for name in ("values", "log_probs", "obs_tensor", "n_steps")})
            found[-1]["popped"] = self.locals.pop("values")
            found[-1]["joined"] = (self.locals | {})["log_probs"]
            found[-1]["default"] = self.locals.setdefault("obs_tensor", None)
            return True

    found: list[dict[str, Any]] = []
    both(lambda: model_of(several(2)), Keeping)
    for ours, theirs in zip(found[:N_STEPS], found[N_STEPS:], strict=True):
        for name, value in theirs.items():
            assert_close(th.as_tensor(ours[name]), th.as_tensor(value))
