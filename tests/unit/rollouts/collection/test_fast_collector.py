"""Collecting: our loop leaves what SB3's leaves, also where callbacks look on, stop it or change the policy."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from helpers.envs import BOX_ACTION, DICT, IMAGE, VECTOR, RandomEnv
from hypothesis import given, settings, strategies as st
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, EveryNTimesteps
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.utils import polyak_update
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize
from torch import nn
from torch.optim import optimizer

import sb3_trpo.rollouts.collection.acting
from sb3_trpo import TRPO
from sb3_trpo.networks.plain_network import Networks
from sb3_trpo.rollouts.advantages import compute_advantages
from sb3_trpo.rollouts.collection.environment import RolloutEnv
from sb3_trpo.rollouts.collection.fast_collector import FastCollector
from sb3_trpo.rollouts.transitions import ChunkLimits

N_STEPS = 24
ARRAYS = ("actions", "rewards", "episode_starts", "values", "log_probs", "advantages", "returns")
EXACT = ("actions", "episode_starts")
PER_STEP = ("obs_tensor", "actions", "values", "log_probs", "clipped_actions", "new_obs", "rewards", "dones", "n_steps")
UNEVEN = spaces.Box(-0.5, np.array([0.2, 1e9], np.float32), (2,))
PAIR = spaces.Dict(far=spaces.Box(-1.0, 1.0, (2, 2)), near=VECTOR, choice=spaces.Discrete(3), bits=spaces.MultiBinary(2))
ACTIONS = {
    "box": UNEVEN,
    "one number": spaces.Box(-1.0, 1.0, (1,)),
    "box without dimensions": spaces.Box(-1.0, 1.0, ()),
    "matrix": spaces.Box(-1.0, 1.0, (2, 3)),
    "doubles": spaces.Box(-1.0, 1.0, (2,), np.float64),
    "choice": spaces.Discrete(4),
    "choices": spaces.MultiDiscrete([2, 3, 4]),
    "bits": spaces.MultiBinary(3),
}
OBSERVATIONS = {
    "doubles": spaces.Box(-1.0, 1.0, (3,), np.float64),
    "integers": spaces.Box(-5, 5, (3,), np.int64),
    "bytes": spaces.Box(0, 255, (3,), np.uint8),
    "matrix": spaces.Box(-1.0, 1.0, (2, 3)),
    "choice": spaces.Discrete(4),
    "choices": spaces.MultiDiscrete([2, 3]),
    "bits": spaces.MultiBinary(3),
    "vectors": PAIR,
    "image, flattened": IMAGE,
}


class Episodes(RandomEnv):
    """Episodes end by themselves now and then, or are cut off after five steps."""

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.n_steps += 1
        chance, noise = self.observation_space.np_random.random(2)
        over, cut_off = bool(chance < 0.1), self.n_steps >= 5
        info = {"is_success": bool(noise < 0.5)} if over or cut_off else {}
        return self.observation_space.sample(), float(np.mean(action) + noise), over, cut_off, info


def several(n_envs: int, observation_space: spaces.Space = VECTOR, action_space: spaces.Space | None = None) -> VecEnv:
    def make() -> gym.Env:
        env = Episodes(observation_space, action_space)
        env.observation_space.seed(0)  # where its draws come from until it is reset with a seed
        return Monitor(env)

    return DummyVecEnv([make] * n_envs)


def model_of(env: gym.Env | VecEnv, policy: str | None = None, n_steps: int = N_STEPS, **settings: Any) -> TRPO:
    """Build a model whose policy is far from the initial one, which is all but uniform."""
    policy = policy or ("MultiInputPolicy" if isinstance(env.observation_space, spaces.Dict) else "MlpPolicy")
    settings = {"seed": 0, "batch_size": n_steps, "device": "cpu", "policy_kwargs": {"net_arch": [16, 16]}} | settings
    model = TRPO(policy, env, n_steps=n_steps, **settings)
    with th.no_grad():
        model.policy.action_net.weight.mul_(50)
    return model


def wrong(reason: str) -> pytest.MarkDecorator:
    """Mark what our loop does not do as SB3's does."""
    return pytest.mark.xfail(strict=True, reason=reason)


def cases(named: dict[str, Any], known: dict[tuple[str, ...], str]) -> list[Any]:
    """Give the cases, those known to be wrong marked."""
    reasons = {name: reason for names, reason in known.items() for name in names}
    return [
        pytest.param(case, id=name, marks=[wrong(reasons[name])] if name in reasons else []) for name, case in named.items()
    ]


class Trace:
    """
    What is left after some rollouts by one of the loops.

    The callback is called as ``learn`` would; training between the rollouts is a change of all weights.
    """

    def __init__(
        self, make: Callable[[], TRPO], by_sb3: bool, callback: BaseCallback | None = None, n_rollouts: int = 1
    ) -> None:
        self.model = model = make()
        _, root = model._setup_learn(10**6, callback)
        root.on_training_start({"self": model}, {})
        self.buffers, self.complete, self.n_quick = [], [], 0
        with pytest.MonkeyPatch.context() as patch:
            collect = FastCollector.collect
            patch.setattr(FastCollector, "collect", lambda *arguments: self._count() or collect(*arguments))
            if by_sb3:
                patch.setattr(FastCollector, "can_collect", lambda *_: False)
            for _ in range(n_rollouts):
                self.complete.append(model.collect_rollouts(model.env, root, model.rollout_buffer, model.n_steps))
                self.buffers.append(copy.deepcopy(model.rollout_buffer))
                scale_weights(model)
        self.generators = th.get_rng_state().numpy(), np.random.get_state()[1], np.array(np.random.get_state()[2:])

    def _count(self) -> None:
        self.n_quick += 1


def scale_weights(model: TRPO) -> None:
    with th.no_grad():
        for parameter in model.policy.parameters():
            parameter.mul_(1.1)


def both(
    make: Callable[[], TRPO], callback: Callable[[], BaseCallback] | None = None, n_rollouts: int = 1, quick: bool = True
) -> tuple[Trace, Trace]:
    """Collect by our loop and by SB3's."""
    ours, theirs = (Trace(make, by_sb3, callback and callback(), n_rollouts) for by_sb3 in (False, True))
    assert (ours.n_quick, theirs.n_quick) == (n_rollouts if quick else 0, 0)
    return ours, theirs


def assert_close(ours: Any, theirs: Any, tolerance: float = 1e-5) -> None:
    """Compare arrays, tensors, and dicts of them, relative to the largest entry."""
    if isinstance(theirs, dict):
        assert list(ours) == list(theirs)
        for key, value in theirs.items():
            assert_close(ours[key], value, tolerance)
        return
    assert type(ours) is type(theirs)
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
    assert np.abs(ours.astype(float) - theirs).max(initial=0.0) <= tolerance * np.abs(theirs.astype(float)).max(initial=0.0)


def assert_same_buffers(ours: RolloutBuffer, theirs: RolloutBuffer, names: tuple[str, ...] = ARRAYS) -> None:
    assert (ours.pos, ours.full) == (theirs.pos, theirs.full)
    assert_close(ours.observations, theirs.observations, 0.0)
    for name in names:
        tolerance = 0.0 if name in EXACT else 1e-6 if name == "rewards" else 1e-5
        assert_close(getattr(ours, name), getattr(theirs, name), tolerance)


def assert_same(ours: Trace, theirs: Trace) -> None:
    for one, other in zip(ours.buffers, theirs.buffers, strict=True):
        assert_same_buffers(one, other)
    assert ours.complete == theirs.complete
    assert ours.model.num_timesteps == theirs.model.num_timesteps
    assert episodes(ours.model) == episodes(theirs.model)
    assert_close(ours.model._last_obs, theirs.model._last_obs, 0.0)
    assert_close(ours.model._last_episode_starts, theirs.model._last_episode_starts, 0.0)
    assert all(np.array_equal(*pair) for pair in zip(ours.generators, theirs.generators, strict=True))


def episodes(model: TRPO) -> tuple[list[Any], list[Any]]:
    return [(info["r"], info["l"]) for info in model.ep_info_buffer], list(model.ep_success_buffer)


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


@pytest.mark.parametrize("rows", [1, 4, 7, 48, 50])
def test_late_values_do_not_depend_on_how_many_are_computed_at_a_time(rows, monkeypatch):
    monkeypatch.setattr(sb3_trpo.rollouts.collection.acting, "PASS_LIMITS", ChunkLimits(2**20, rows))
    assert_same(*both(lambda: model_of(several(2, PAIR)), n_rollouts=2))


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
def test_what_our_loop_does_not_know_is_left_to_sb3s(make):
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
def test_actions_are_kept_as_they_were_drawn(dtype):
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
def test_a_callback_reads_them_in_whatever_way(look):
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


class Acting(BaseCallback):
    """Does something at some steps; goes on if that gives nothing."""

    def __init__(self, act: Callable[[Acting], Any], at: tuple[int, ...] = (4, 9, 10)) -> None:
        super().__init__()
        self.act, self.at = act, at

    def _on_step(self) -> bool:
        return self.n_calls not in self.at or self.act(self) is not False


@pytest.mark.parametrize("at", [1, 6, 8, N_STEPS])
def test_a_callback_that_stops_leaves_the_buffer_as_sb3s_loop_does(at):
    ours, theirs = both(lambda: model_of(several(3)), lambda: Acting(lambda _: False, (at,)))
    assert ours.complete == [False]
    assert ours.buffers[0].pos == at - 1
    assert_same(ours, theirs)


def test_a_callback_changes_the_rewards():
    def raise_rewards(callback: Acting) -> None:
        callback.locals["rewards"] += 3.0

    ours, theirs = both(lambda: model_of(several(3)), lambda: Acting(raise_rewards, tuple(range(0, N_STEPS, 2))))
    assert_same(ours, theirs)
    assert ours.buffers[0].rewards.max() > 3.0


@wrong("probabilities are computed late, from what the callback has made of the actions")
def test_a_callback_changes_the_stored_actions_alone():
    def overwrite(callback: Acting) -> None:
        callback.locals["actions"][:] = 0.25

    assert_same(*both(lambda: model_of(several(3, action_space=BOX_ACTION)), lambda: Acting(overwrite)))


@wrong("values, log_probs and bootstrapped rewards are written into the buffer only when the rollout ends")
def test_a_callback_finds_the_buffer_filled_so_far():
    found: list[np.ndarray] = []

    def read(callback: Acting) -> None:
        buffer = callback.model.rollout_buffer
        found.append(np.stack([getattr(buffer, name) for name in ("values", "log_probs", "rewards")]))

    both(lambda: model_of(several(3)), lambda: Acting(read, (N_STEPS,)))
    assert_close(*found)


def step_optimizer(model: TRPO) -> None:
    for parameter in model.policy.parameters():
        parameter.grad = th.ones_like(parameter)
    model.policy.optimizer.param_groups[0]["lr"] = 0.1
    model.policy.optimizer.step()
    model.policy.optimizer.zero_grad()


def step_fused_optimizer(model: TRPO) -> None:
    model.policy.optimizer = th.optim.Adam(model.policy.parameters(), fused=True)
    step_optimizer(model)


def write_through_data(model: TRPO) -> None:
    for parameter in model.policy.parameters():
        parameter.data.mul_(1.5)


def move_polyak(model: TRPO) -> None:
    other = copy.deepcopy(model.policy)
    scale_state(other)
    polyak_update(other.parameters(), model.policy.parameters(), 0.5)


def scale_state(policy: nn.Module) -> None:
    policy.load_state_dict({name: 1.5 * value for name, value in policy.state_dict().items()})


def set_parameters(model: TRPO) -> None:
    saved = model.get_parameters()
    saved["policy"] = {name: 1.5 * value for name, value in saved["policy"].items()}
    model.set_parameters(saved)


def vector_to_parameters(model: TRPO) -> None:
    vector = 1.5 * nn.utils.parameters_to_vector(model.policy.parameters()).detach()
    nn.utils.vector_to_parameters(vector, model.policy.parameters())


def replace_data(model: TRPO) -> None:
    for parameter in model.policy.parameters():
        parameter.data = parameter.data * 1.5


def replace_data_of_critic_twice(model: TRPO) -> None:
    for parameter in [*model.policy.mlp_extractor.value_net.parameters(), *model.policy.value_net.parameters()]:
        for _ in range(2):
            parameter.data = parameter.data * 1.5


def replace_parameters(model: TRPO) -> None:
    for module in [*model.policy.mlp_extractor.policy_net, model.policy.value_net]:
        if isinstance(module, nn.Linear):
            module.weight = nn.Parameter(1.5 * module.weight.detach())


def replace_modules(model: TRPO) -> None:
    model.policy.action_net = copy.deepcopy(model.policy.action_net)
    model.policy.value_net = copy.deepcopy(model.policy.value_net)
    scale_state(model.policy)


CHANGES: dict[str, Callable[[TRPO], None]] = {
    "load_state_dict": lambda model: scale_state(model.policy),
    "set_parameters": set_parameters,
    "optimizer step": step_optimizer,
    "fused optimizer step": step_fused_optimizer,
    "vector_to_parameters": vector_to_parameters,
    "load_from_vector": lambda model: model.policy.load_from_vector(1.5 * model.policy.parameters_to_vector()),
    "in place": scale_weights,
    "log_std alone": lambda model: model.policy.log_std.detach().add_(0.5),
    "last bias of the critic": lambda model: model.policy.value_net.bias.detach().add_(0.5),
    "data replaced": replace_data,
    "data of the critic replaced twice": replace_data_of_critic_twice,
    "data overwritten": write_through_data,
    "SB3's polyak_update": move_polyak,
    "parameters replaced": replace_parameters,
    "modules replaced": replace_modules,
}
BY_THE_WEIGHTS = ("actions", "episode_starts", "values", "log_probs")


def after_change(change: Callable[[TRPO], None], at: tuple[int, ...], action_space: spaces.Space) -> tuple[Trace, Trace]:
    return both(
        lambda: model_of(several(3, action_space=action_space)), lambda: Acting(lambda callback: change(callback.model), at)
    )


@pytest.mark.parametrize("change", ["load_state_dict", "vector_to_parameters"])
def test_a_policy_that_lives_elsewhere_acts_by_a_copy_that_follows_it(change, monkeypatch):
    monkeypatch.setattr(sb3_trpo.rollouts.collection.acting, "CPU", th.device("cpu", 0))
    copied, on_cpu = [], Networks.on_cpu
    monkeypatch.setattr(Networks, "on_cpu", lambda networks: copied.append(None) or on_cpu(networks))
    assert_same(*after_change(CHANGES[change], (4, 9), BOX_ACTION))
    assert len(copied) == 3


@pytest.mark.parametrize(
    "change",
    cases(
        CHANGES,
        {
            (
                "data overwritten",
                "SB3's polyak_update",
            ): "torch counts no write through .data: values are those of old weights",
            ("parameters replaced", "modules replaced"): "the networks are read once per rollout",
        },
    ),
)
def test_weights_changed_amid_a_rollout_count_from_the_next_step_on(change):
    ours, theirs = after_change(change, (4, 9, 10), BOX_ACTION)
    assert_same_buffers(ours.buffers[0], theirs.buffers[0], BY_THE_WEIGHTS)


@pytest.mark.parametrize("action_space", ACTIONS.values(), ids=ACTIONS)
def test_weights_changed_amid_a_rollout_count_under_every_action_space(action_space):
    ours, theirs = after_change(CHANGES["load_state_dict"], (1, 9), action_space)
    assert_same_buffers(ours.buffers[0], theirs.buffers[0], BY_THE_WEIGHTS)


def test_weights_changed_at_a_time_limit_count_for_its_bootstrap():
    assert_same(*after_change(CHANGES["load_state_dict"], tuple(range(1, N_STEPS)), BOX_ACTION))


def test_weights_changed_at_the_last_step_count_for_the_last_values():
    assert_same(*after_change(CHANGES["load_state_dict"], (N_STEPS,), BOX_ACTION))


def test_time_limits_before_a_change_of_the_weights_are_bootstrapped_once():
    def make() -> TRPO:
        return model_of(gym.wrappers.TimeLimit(gym.make("Pendulum-v1").unwrapped, 6))

    assert_same(*both(make, lambda: Acting(lambda callback: scale_state(callback.model.policy), (3, 14))))


def test_values_read_after_a_change_of_the_weights_are_those_of_the_step():
    found: list[th.Tensor] = []

    def change(callback: Acting) -> None:
        scale_state(callback.model.policy)
        found.append(th.cat([callback.locals["values"].flatten(), callback.locals["log_probs"]]))

    both(lambda: model_of(several(3, action_space=BOX_ACTION)), lambda: Acting(change, (4,)))
    assert_close(*found)


def test_weights_changed_at_the_start_of_a_rollout_count():
    class AtStart(BaseCallback):
        def _on_rollout_start(self) -> None:
            scale_state(self.model.policy)

        def _on_step(self) -> bool:
            return True

    assert_same(*both(lambda: model_of(several(2)), AtStart, n_rollouts=2))


class Faulty(RandomEnv):
    """The observation after two steps is not a number."""

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.n_steps += 1
        observation = self.observation_space.sample()
        return np.full_like(observation, np.nan) if self.n_steps == 2 else observation, 0.0, False, False, {}


@pytest.mark.parametrize("action_space", ACTIONS.values(), ids=ACTIONS)
def test_an_observation_that_is_not_a_number_is_named(action_space):
    with pytest.raises(ValueError, match="non-finite observations: nan in environment 0 at step 2 of the rollout"):
        Trace(lambda: model_of(Faulty(action_space=action_space)), by_sb3=False)


@pytest.mark.parametrize("action_space", ACTIONS.values(), ids=ACTIONS)
def test_weights_that_are_not_numbers_are_refused(action_space):
    def make() -> TRPO:
        model = model_of(several(2, action_space=action_space))
        with th.no_grad():
            model.policy.action_net.weight[-1, 0] = np.nan
        return model

    with pytest.raises(ValueError, match="gave NaN"):
        Trace(make, by_sb3=False)


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


def test_only_environments_whose_episode_ended_are_asked_for_its_statistics(monkeypatch):
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
        """Goes on with the next episode by itself, as meta-learning has it."""

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


UNIT = st.sampled_from([0.0, 1.0, 0.99, 0.95]) | st.floats(0.0, 1.0)


@settings(max_examples=150)
@given(st.integers(1, 70), st.integers(1, 4), UNIT, UNIT, st.sampled_from([0.0, 0.1, 0.5, 1.0]), st.integers(0, 2**32 - 1))
def test_advantages_are_those_of_the_buffers_own_method(n_steps, n_envs, gamma, gae_lambda, ending, seed):
    generator = np.random.default_rng(seed)
    ours = RolloutBuffer(n_steps, VECTOR, BOX_ACTION, "cpu", gae_lambda, gamma, n_envs)
    for name in ("rewards", "values"):
        getattr(ours, name)[:] = generator.normal(size=(n_steps, n_envs))
    ours.episode_starts[:] = generator.random((n_steps, n_envs)) < ending
    last_values = generator.normal(size=n_envs).astype(np.float32)
    last_dones = generator.random(n_envs) < ending
    theirs = copy.deepcopy(ours)
    theirs.compute_returns_and_advantage(th.from_numpy(last_values), last_dones)
    compute_advantages(ours, last_values.copy(), last_dones)
    for name in ARRAYS:
        assert_close(getattr(ours, name), getattr(theirs, name), 1e-5 if name in ("advantages", "returns") else 0.0)


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


def test_a_hook_set_when_a_rollout_starts_is_called_and_the_start_announced_once():
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


@pytest.mark.parametrize("end", ["complete", "stopped", "error"])
def test_the_count_of_optimizer_steps_ends_with_the_rollout(end):
    class Ending(BaseCallback):
        def _on_step(self) -> bool:
            if end == "error":
                raise RuntimeError
            return end == "complete"

    models = []
    with suppress(RuntimeError):
        Trace(lambda: models.append(model_of(several(2))) or models[0], by_sb3=False, callback=Ending())
    assert not models[0].policy.optimizer._optimizer_step_post_hooks
    assert not optimizer._global_optimizer_post_hooks


def test_a_standard_deviation_that_becomes_nan_amid_a_rollout_is_refused():
    class Spoiling(BaseCallback):
        def _on_step(self) -> bool:
            self.model.policy.log_std.data.fill_(np.nan)
            return True

    with pytest.raises(ValueError, match="gave NaN"):
        Trace(lambda: model_of(several(2, action_space=BOX_ACTION)), by_sb3=False, callback=Spoiling())


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


def test_an_overridden_update_locals_is_given_what_sb3_gives():
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
