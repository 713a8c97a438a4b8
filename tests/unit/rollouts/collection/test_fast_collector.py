"""The fast loop leaves what SB3's leaves, also where callbacks look on, stop it or change things."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from helpers.envs import BOX_ACTION, DICT, IMAGE, VECTOR, BareVecEnv
from helpers.rollouts import (
    ACTIONS,
    EACH_STEP,
    N_STEPS,
    OBSERVATIONS,
    PER_STEP,
    AtStart,
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
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CallbackList,
    CheckpointCallback,
    EvalCallback,
    EveryNTimesteps,
    StopTrainingOnMaxEpisodes,
)
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper, VecNormalize
from torch import nn

from sb3_trpo import TRPO
from sb3_trpo.rollouts.collection.acting import ActingPolicy
from sb3_trpo.rollouts.collection.environment import RolloutEnv
from sb3_trpo.rollouts.collection.fast_collector import FastCollector


def model_on(
    n_envs: int = 2,
    observation_space: spaces.Space = VECTOR,
    action_space: spaces.Space = BOX_ACTION,
    wrap: Callable[[VecEnv], VecEnv] = lambda env: env,
    **settings: Any,
) -> TRPO:
    return model_of(wrap(several(n_envs, observation_space, action_space)), **settings)


def without_biases() -> TRPO:
    model = model_on()
    for module in model.policy.modules():
        if isinstance(module, nn.Linear):
            module.bias = None
    return model


ACTIVATIONS = (nn.Identity, nn.Tanh, nn.ReLU, nn.ELU, nn.LeakyReLU, nn.SiLU, nn.GELU)
NETWORKS = [
    *({"net_arch": [8], "activation_fn": kind} for kind in ACTIVATIONS),
    {"net_arch": []},
    {"net_arch": {"pi": [7], "vf": [5, 64, 3]}},
    {"net_arch": [64, 64], "share_features_extractor": True, "log_std_init": 1.0},
]
MODELS = {"no biases": without_biases}
MODELS |= {f"{n} of {name}": partial(model_on, n, VECTOR, space) for n, (name, space) in product((1, 2, 5), ACTIONS.items())}
MODELS |= {f"{n} with {kwargs}": partial(model_on, n, policy_kwargs=kwargs) for n, kwargs in product((1, 3), NETWORKS)}
for kind, actions in {"box": BOX_ACTION, "choice": spaces.Discrete(4)}.items():
    MODELS |= {f"{kind} on {name}": partial(model_on, 2, space, actions) for name, space in OBSERVATIONS.items()}
    for space in (VECTOR, spaces.Dict(far=BOX_ACTION, near=VECTOR)):
        MODELS[f"{kind} on normalized {space}"] = partial(model_on, 2, space, actions, VecNormalize)


CNNS: dict[str, dict[str, Any]] = {
    "extractors apart": {},
    "extractor shared": {"share_features_extractor": True},
    "shared, and layers": {"share_features_extractor": True, "net_arch": [8]},
}
MODELS |= {
    f"{n} CNN, {name}": partial(model_on, n, IMAGE, spaces.Discrete(3), policy="CnnPolicy", policy_kwargs=kwargs)
    for n, (name, kwargs) in product((1, 3), CNNS.items())
}
MODELS["CNN, channels last"] = partial(
    model_on, 2, spaces.Box(0, 255, (40, 40, 3), np.uint8), BOX_ACTION, policy="CnnPolicy", policy_kwargs={}
)
UNEVEN_PAIR = spaces.Box(np.array([-3.0, 0.0], np.float32), np.array([1.0, 7.0], np.float32))
NOISES = {
    "noise": {},
    "noise, squashed": {"squash_output": True},
    "noise, reduced": {"full_std": False, "use_expln": True, "log_std_init": 0.5},
    "noise of no layers": {"net_arch": []},
}


def model_with_noise(
    n_envs: int, frequency: int, learns_features: bool = False, space: Any = BOX_ACTION, **kwargs: Any
) -> TRPO:
    kwargs = {"net_arch": [16, 16], "log_std_init": -1.0} | kwargs
    model = model_on(n_envs, VECTOR, space, use_sde=True, sde_sample_freq=frequency, policy_kwargs=kwargs)
    model.policy.action_dist.learn_features = learns_features
    return model


for n, frequency, (name, kwargs) in product((1, 3), (-1, 1, 4), NOISES.items()):
    MODELS[f"{n} with {name}, new every {frequency}"] = partial(model_with_noise, n, frequency, **kwargs)
MODELS |= {f"{n} with features of noise": partial(model_with_noise, n, 4, True) for n in (1, 3)}
for n, space in product((1, 3), (BOX_ACTION, UNEVEN_PAIR)):
    MODELS[f"{n} with a Beta distribution on {space}"] = partial(
        model_on, n, VECTOR, space, policy_kwargs={"action_distribution": "beta", "net_arch": [16, 16]}
    )
for name in ("box", "one number", "matrix", "doubles"):
    MODELS[f"noise on {name}"] = partial(model_with_noise, 2, 4, space=ACTIONS[name], squash_output=name != "box")


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_the_buffer_is_sb3s(make):
    ours, theirs = both(make, n_rollouts=2)
    assert_same(ours, theirs)
    assert len(episodes(ours.model)[1]) >= 2 * ours.model.n_envs


def pendulum(**settings: Any) -> TRPO:
    """Build a model on episodes of six steps."""
    return model_of(gym.wrappers.TimeLimit(gym.make("Pendulum-v1").unwrapped, 6), **settings)


@pytest.mark.parametrize("later", [None, 0.3])
@pytest.mark.parametrize("coefficients", [(1.0, 1.0), (0.9, 0.0), (0.5, 0.7)], ids=str)
def test_time_limits_are_bootstrapped_by_the_discount_of_the_model(coefficients, later):
    """Also where it has changed since the buffer was made, which has another one then."""
    gamma, gae_lambda = coefficients

    def make() -> TRPO:
        model = pendulum(gamma=gamma, gae_lambda=gae_lambda)
        model.gamma = later or gamma
        return model

    ours, theirs = both(make, n_rollouts=2)
    assert_same(ours, theirs)
    assert len(episodes(ours.model)[0]) == 2 * N_STEPS // 6
    assert ours.model.rollout_buffer.gamma == gamma


class OtherBuffer(RolloutBuffer):
    """Not SB3's."""


@pytest.mark.parametrize(
    "make",
    [
        lambda: model_of(several(2, DICT)),
        lambda: model_of(several(2), rollout_buffer_class=OtherBuffer),
        lambda: model_of(several(2), policy_kwargs={"activation_fn": nn.Softplus}),
    ],
    ids=["image and vector", "buffer", "activation"],
)
def test_anything_that_the_fast_loop_does_not_know_is_left_to_sb3s(make):
    assert_same(*both(make, quick=False))


def test_a_rollout_shorter_than_the_buffer_is_left_to_sb3():
    model = model_of(several(2))
    model._setup_learn(100)
    assert [knows(model, n) for n in (N_STEPS, N_STEPS - 1)] == [True, False]


def knows(model: TRPO, n_steps: int) -> bool:
    env = RolloutEnv(model.env, model._plain)
    return FastCollector(model, env, model.rollout_buffer, model.acting_policies).prepare(n_steps) is not None


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

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[dict[str, Any]] = []

    def read(self, *names: str) -> None:
        self.seen.append({name: copy.deepcopy(self.locals[name]) for name in names})

    def _on_step(self) -> bool:
        self.read(*PER_STEP)
        return True

    def _on_rollout_end(self) -> None:
        self.read("values", "log_probs", "obs_tensor", "n_steps")


class Composite(BaseCallback):
    """A user's own list of callbacks."""

    def __init__(self, *children: BaseCallback) -> None:
        super().__init__()
        self.children, self.by_name = children, dict(enumerate(children))

    def _init_callback(self) -> None:
        for child in self.children:
            child.init_callback(self.model)

    def update_child_locals(self, locals_: dict[str, Any]) -> None:
        for child in self.children:
            child.update_locals(locals_)

    def _on_step(self) -> bool:
        return all(child.on_step() for child in self.children)


NESTED = {
    "in a list": lambda reader: CallbackList([Reader(), reader]),
    "in a list in a list": lambda reader: CallbackList([CallbackList([reader])]),
    "every few steps in a list": lambda reader: CallbackList([EveryNTimesteps(5, reader)]),
    "in a composite": Composite,
}


def assert_read_alike(make: Callable[[], TRPO], nest: Callable[[Reader], BaseCallback] = lambda reader: reader) -> None:
    ours, theirs = readers = Reader(), Reader()
    left = iter(readers)
    assert_same(*both(make, lambda: nest(next(left)), n_rollouts=2))
    assert len(ours.seen) > 2
    for one, other in zip(ours.seen, theirs.seen, strict=True):
        assert_close(one, other)


@pytest.mark.parametrize("action_space", ACTIONS.values(), ids=ACTIONS)
def test_a_callback_reads_the_variables_of_sb3s_loop(action_space):
    assert_read_alike(partial(model_on, 2, VECTOR, action_space))


@pytest.mark.parametrize("kwargs", NOISES.values(), ids=NOISES)
def test_a_callback_reads_them_under_state_dependent_noise(kwargs):
    assert_read_alike(partial(model_with_noise, 2, 4, space=UNEVEN_PAIR, **kwargs))


class ReadsAtTheEnd(BaseCallback):
    """Reads variables after the last rollout, when the update has rearranged the buffer; may end the training."""

    def __init__(self, last_step: int) -> None:
        super().__init__()
        self.last_step = last_step

    def _on_step(self) -> bool:
        return self.n_calls < self.last_step

    def _on_training_end(self) -> None:
        self.seen = {name: copy.deepcopy(self.locals[name]) for name in ("obs_tensor", "values", "log_probs")}


@pytest.mark.parametrize("last_step", [N_STEPS - 2, 10 * N_STEPS], ids=["ended by the callback", "complete"])
def test_variables_can_be_read_after_the_training(last_step, monkeypatch):
    ours, theirs = ReadsAtTheEnd(last_step), ReadsAtTheEnd(last_step)
    model_on(3).learn(N_STEPS * 3, ours)
    monkeypatch.setattr(FastCollector, "prepare", lambda *_: None)
    model_on(3).learn(N_STEPS * 3, theirs)
    assert_close(ours.seen, theirs.seen)


def test_callbacks_do_not_keep_what_has_acted(monkeypatch):
    start, acting = ActingPolicy.__enter__, []
    monkeypatch.setattr(ActingPolicy, "__enter__", lambda policy: acting.append(weakref.ref(policy)) or start(policy))
    reader = Reader()
    model_on(2).learn(N_STEPS * 2, reader)
    assert reader.locals["values"].shape == (2, 1)
    assert [policy() for policy in acting] == [None]


@pytest.mark.parametrize("nest", NESTED.values(), ids=NESTED)
def test_a_callback_reads_them_wherever_it_is(nest):
    assert_read_alike(model_on, nest)


def test_the_names_in_locals_are_sb3s():
    found: list[Any] = []

    def note(callback: Intervening) -> None:
        names = set(callback.locals) - {"idx", "done", "terminal_obs", "terminal_value", "__class__"}
        found.append([sorted(names), *(name in callback.locals for name in ("values", "log_probs", "obs_tensor", "nothing"))])
        found.append([callback.locals.get("nothing"), callback.locals.get("nothing", 1)])

    both(lambda: model_of(several(2)), lambda: Intervening(note, EACH_STEP), n_rollouts=2)
    assert found[: len(found) // 2] == found[len(found) // 2 :] != []


def test_locals_at_the_start_of_a_rollout_can_be_read():
    found: list[th.Tensor | None] = []

    def note(callback: BaseCallback) -> None:
        found.append(copy.deepcopy(callback.locals.get("values")))

    both(lambda: model_of(several(2)), lambda: AtStart(note), n_rollouts=2)
    assert found[0] is found[2] is None
    assert_close(found[1], found[3])


@wrong("share_locals puts a new dict in the place of the one that SB3 only ever updates")
def test_a_dict_of_locals_kept_from_the_start_of_training_goes_on():
    class KeepsLocals(BaseCallback):
        def _on_training_start(self) -> None:
            self.kept = self.locals

        def _on_step(self) -> bool:
            return "rewards" in self.kept

    ours, theirs = both(lambda: model_of(several(2)), KeepsLocals)
    assert (ours.complete, theirs.complete) == ([True], [True])


@pytest.mark.parametrize(
    ("callback", "n"),
    [(StopTrainingOnMaxEpisodes(10**6), 1), (Intervening(lambda _: True, ()), 2)],
    ids=["sb3's", "the user's"],
)
def test_a_policy_is_read_again_only_if_a_callback_may_have_altered_it_at_the_start(callback, n, monkeypatch):
    read, calls = ActingPolicy.read, []
    monkeypatch.setattr(ActingPolicy, "read", lambda *arguments: calls.append(1) or read(*arguments))
    model = model_of(several(2))
    _, root = model._setup_learn(10**6, callback)
    root.on_training_start({"self": model}, {})
    model.collect_rollouts(model.env, root, model.rollout_buffer, model.n_steps)
    assert len(calls) == n


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


def overwrite(name: str, value: Any) -> Callable[[BaseCallback], None]:
    """Write to an array of the loop in place."""

    def act(callback: BaseCallback) -> None:
        callback.locals[name][:1] = value

    return act


def replace_locals(callback: BaseCallback) -> None:
    for name in ("rewards", "dones", "new_obs", "actions"):
        callback.locals[name] = np.ones_like(callback.locals[name])
    callback.locals["infos"] = [{"episode": {"r": 1.0, "l": 1}}] * 3
    callback.locals["n_steps"] = 0


def report_an_episode(callback: BaseCallback) -> None:
    callback.locals["infos"][1]["episode"] = {"r": 7.0, "l": 3}


def drop_reports(callback: BaseCallback) -> None:
    for info in callback.locals["infos"]:
        info.pop("episode", None)


def cut_off(callback: BaseCallback) -> None:
    """Make every end one by a time limit, at another last observation."""
    for info in callback.locals["infos"]:
        info["TimeLimit.truncated"] = True
        if "terminal_observation" in info:
            info["terminal_observation"] = 0.5 * info["terminal_observation"]


def hold(callback: BaseCallback) -> None:
    """Keep what the step has given, and write to the one before."""
    held = vars(callback).setdefault("held", [])
    for info in held[-1] if held else []:
        info["mine"] = True
    held.append(callback.locals["infos"])
    assert held[-1] is callback.locals["infos"]


INTERVENTIONS: dict[str, Callable[[BaseCallback], None]] = {
    "an end is declared": overwrite("dones", True),
    "an end is denied": overwrite("dones", False),
    "next observations": overwrite("new_obs", 0.25),
    "rewards": overwrite("rewards", 5.0),
    "clipped actions": overwrite("clipped_actions", 5.0),
    "locals replaced": replace_locals,
    "locals emptied": lambda callback: callback.locals.clear(),
    "a report is made up": report_an_episode,
    "reports are dropped": drop_reports,
    "every end is a time limit": cut_off,
    "noise is drawn": lambda callback: callback.model.policy.reset_noise(3),
    "noise for one": lambda callback: callback.model.policy.reset_noise(),
}


@pytest.mark.parametrize("at", [EACH_STEP, (4, 9, 10)], ids=["each step", "some steps"])
@pytest.mark.parametrize("act", INTERVENTIONS.values(), ids=INTERVENTIONS)
def test_what_a_callback_changes_has_the_effect_that_it_has_in_sb3s_loop(act, at):
    assert_same(*both(partial(model_with_noise, 3, -1), lambda: Intervening(act, at), n_rollouts=2))


def test_infos_that_a_callback_holds_are_its_own():
    ours, theirs = holding = Intervening(hold, EACH_STEP), Intervening(hold, EACH_STEP)
    left = iter(holding)
    assert_same(*both(partial(model_on, 3), lambda: next(left)))
    for one, other in zip(ours.held, theirs.held, strict=True):
        for info, expected in zip(one, other, strict=True):
            assert sorted(info) == sorted(expected)
            assert_close(np.array(info.get("terminal_observation", 0.0)), np.array(expected.get("terminal_observation", 0.0)))
            assert info["TimeLimit.truncated"] == expected["TimeLimit.truncated"]
    assert len({id(info) for infos in ours.held for info in infos}) == 3 * N_STEPS


def sb3s_callbacks(folder: Path) -> BaseCallback:
    evaluation = EvalCallback(several(1, action_space=BOX_ACTION), eval_freq=5, n_eval_episodes=2, verbose=0, warn=False)
    saves = CheckpointCallback(7, str(folder), verbose=0)
    return CallbackList(
        [evaluation, saves, EveryNTimesteps(6, CheckpointCallback(1, str(folder))), StopTrainingOnMaxEpisodes(9)]
    )


def test_sb3s_callbacks_do_in_the_fast_loop_what_they_do_in_sb3s(tmp_path):
    ours, theirs = both(partial(model_with_noise, 2, 4), partial(sb3s_callbacks, tmp_path), n_rollouts=2)
    assert_same(ours, theirs)
    assert ours.complete == [True, False]


@pytest.mark.parametrize(("is_watched", "n_looks"), [(False, 1), (True, N_STEPS + 1)])
def test_weights_are_compared_at_each_step_only_for_callbacks_that_may_change_them(tmp_path, monkeypatch, is_watched, n_looks):
    looks, follow = [], ActingPolicy.follow_changes
    monkeypatch.setattr(ActingPolicy, "follow_changes", lambda policy: looks.append(None) or follow(policy))
    callback = Reader() if is_watched else sb3s_callbacks(tmp_path)
    Trace(model_on, by_sb3=False, callback=callback)
    assert len(looks) == n_looks


@wrong("probabilities are computed late, from what the callback has made of the actions")
def test_a_callback_changes_the_stored_actions_alone():
    def overwrite(callback: Intervening) -> None:
        callback.locals["actions"][:] = 0.25

    assert_same(*both(lambda: model_on(3), lambda: Intervening(overwrite)))


@wrong("values, log_probs and bootstrapped rewards are written into the buffer only when the rollout ends")
def test_a_callback_finds_the_buffer_filled_so_far():
    found: list[np.ndarray] = []

    def read(callback: Intervening) -> None:
        buffer = callback.model.rollout_buffer
        found.append(np.stack([getattr(buffer, name) for name in ("values", "log_probs", "rewards")]))

    both(lambda: model_of(several(3)), lambda: Intervening(read, (N_STEPS,)))
    assert_close(*found)


class Batched(BareVecEnv):
    """A thousand environments in a few arrays; the k-th one's episodes take k % 50 + 1 steps, every third is cut off."""

    def __init__(self, observation_space: spaces.Space = VECTOR) -> None:
        super().__init__(1000, observation_space, BOX_ACTION)
        self.lengths = np.arange(1000) % 50 + 1

    def reset(self) -> np.ndarray:
        self.generator, self.ages = np.random.default_rng(0), np.zeros(1000, int)
        return self.observe()

    def observe(self) -> np.ndarray:
        return self.generator.normal(size=(1000, 3)).astype(np.float32)

    def step_wait(self) -> tuple[Any, Any, Any, Any]:
        self.ages += 1
        dones, last, infos = self.ages == self.lengths, self.observe(), [{} for _ in range(1000)]
        for index in np.flatnonzero(dones):
            infos[index] = {"terminal_observation": last[index], "TimeLimit.truncated": index % 3 == 0}
            infos[index] |= {"episode": {"r": float(index), "l": self.ages[index]}, "is_success": index % 2 == 0}
        self.ages[dones] = 0
        return self.observe(), self.actions.mean(1), dones, infos


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
    class Endless(VecEnvWrapper):
        """Continues with the next episode by itself, as in meta-learning."""

        def reset(self) -> Any:
            return self.venv.reset()

        def step_wait(self) -> Any:
            observations, rewards, dones, infos = self.venv.step_wait()
            return observations, rewards, np.zeros_like(dones), infos

    ours, theirs = both(lambda: model_of(Endless(several(2))))
    assert len(theirs.model.ep_info_buffer) > 0
    assert_same(ours, theirs)


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


def test_what_a_callback_changes_when_a_rollout_starts_counts_from_its_first_step():
    def change(callback: BaseCallback) -> None:
        callback.model.policy.log_std = th.nn.Parameter(th.full((2,), -2.0))

    assert_same(*both(model_on, lambda: AtStart(change), n_rollouts=2))


def test_a_hook_set_when_a_rollout_starts_is_called_and_the_start_is_announced_once():
    starts: list[BaseCallback] = []
    calls: list[None] = []

    def add_hook(callback: BaseCallback) -> None:
        starts.append(callback)
        callback.model.policy.action_net.register_forward_hook(lambda *_: calls.append(None))

    ends: list[None] = []

    def watched() -> BaseCallback:
        callback = AtStart(add_hook)
        callback._on_rollout_end = lambda: ends.append(None)
        return callback

    assert_same(*both(lambda: model_of(several(2)), watched))
    assert (len(set(starts)), len(starts), len(ends), len(calls)) == (2, 2, 2, 2 * N_STEPS)


@pytest.mark.parametrize("name", ["add", "compute_returns_and_advantage"])
def test_a_patched_buffer_is_filled_by_sb3(name):
    model, calls = model_of(several(2)), []
    original = getattr(model.rollout_buffer, name)
    setattr(model.rollout_buffer, name, lambda *args, **kwargs: calls.append(None) or original(*args, **kwargs))
    model.learn(N_STEPS * 2)
    assert len(calls) == (N_STEPS if name == "add" else 1)


def test_observations_are_kept_as_the_policy_saw_them():
    ours, theirs = both(lambda: model_of(Batched(spaces.Box(-1.0, 1.0, (3,), np.float16))))
    assert_same(ours, theirs)
    assert ours.buffers[0].observations.dtype == np.float32


def test_the_policy_is_in_evaluation_mode_while_it_collects():
    modes: set[bool] = set()
    model = model_of(several(2))
    model.policy.set_training_mode(True)
    look = Intervening(lambda callback: modes.add(callback.model.policy.training), EACH_STEP)
    Trace(lambda: model, by_sb3=False, callback=look)
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
