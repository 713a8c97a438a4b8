"""The policy in the fast loop: values computed late, and weights that someone changes during a rollout."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from helpers.envs import BOX_ACTION
from helpers.rollouts import (
    ACTIONS,
    N_STEPS,
    PAIR,
    AtStart,
    Intervening,
    Trace,
    assert_close,
    assert_same,
    assert_same_buffers,
    both,
    cases,
    model_of,
    scale_weights,
    several,
)
from stable_baselines3.common.utils import polyak_update
from torch import nn
from torch.optim import optimizer

import sb3_trpo.rollouts.collection.acting
from sb3_trpo import TRPO
from sb3_trpo.distributions.gaussian import StateDependentHead
from sb3_trpo.networks.plain_network import Networks, read_networks
from sb3_trpo.rollouts.transitions import ChunkLimits


@pytest.mark.parametrize("rows", [1, 4, 7, 48, 50])
def test_late_values_do_not_depend_on_how_many_are_computed_at_a_time(rows, monkeypatch):
    monkeypatch.setattr(sb3_trpo.rollouts.collection.acting, "PASS_LIMITS", ChunkLimits(2**20, rows))
    assert_same(*both(lambda: model_of(several(2, PAIR)), n_rollouts=2))


def in_double(networks: Networks) -> Networks:
    actor, head = networks.actor, networks.head
    return networks._replace(
        actor=actor.with_tensors([tensor.double() for tensor in actor.tensors]),
        head=head.with_parameters([tensor.double() for tensor in head.parameters]),
    )


SAMPLED: dict[str, dict[str, Any]] = {
    **{name: {"action_space": ACTIONS[name]} for name in ("box", "matrix", "choice", "choices", "bits")},
    "beta": {"action_space": BOX_ACTION, "action_distribution": "beta"},
    "noise": {"action_space": BOX_ACTION, "use_sde": True},
    "noise, renewed": {"action_space": BOX_ACTION, "use_sde": True, "sde_sample_freq": 4},
    "noise, squashed": {"action_space": BOX_ACTION, "use_sde": True, "squash_output": True},
    "noise, reduced": {"action_space": BOX_ACTION, "use_sde": True, "full_std": False, "use_expln": True},
}


@pytest.mark.parametrize("net_arch", [[64, 64], [256, 256]], ids=str)
@pytest.mark.parametrize("n_envs", [1, 3, 40])
@pytest.mark.parametrize("case", SAMPLED.values(), ids=SAMPLED)
@th.no_grad()
def test_the_ratio_at_the_old_parameters_is_1_up_to_rounding(case, n_envs, net_arch):
    """By the policy's own methods, by its networks as the update runs them, and by those in float64."""
    settings = {name: case[name] for name in case if name in ("use_sde", "sde_sample_freq")}
    kwargs = {"net_arch": net_arch} | {name: case[name] for name in case if name not in (*settings, "action_space")}
    env = several(n_envs, action_space=case["action_space"])
    model = model_of(env, policy_kwargs=kwargs, **settings)
    _, callback = model._setup_learn(10**6)
    assert model.collect_rollouts(model.env, callback, model.rollout_buffer, N_STEPS)
    policy, buffer, networks = model.policy, model.rollout_buffer, read_networks(model.policy)
    seen, actions = (th.as_tensor(part).flatten(0, 1) for part in (buffer.observations, buffer.actions))
    if isinstance(policy.action_space, spaces.Discrete):
        actions = actions.flatten()
    stored = th.as_tensor(buffer.log_probs).flatten()
    ways = [networks] if policy.squash_output else [networks, in_double(networks)]  # the inverse of tanh amplifies rounding
    for each in ways:
        features = networks.features(seen).to(each.actor.tensors[0])
        distribution = each.head.distribution(each.actor(features))
        now = distribution.log_prob(actions.to(features))
        assert float((now - stored).abs().max()) <= 1e-5
    assert float((policy.evaluate_actions(seen, actions.float())[1] - stored).abs().max()) <= 1e-5


def step_optimizer(model: TRPO, **settings: Any) -> None:
    if settings:
        model.policy.optimizer = th.optim.Adam(model.policy.parameters(), **settings)
    for parameter in model.policy.parameters():
        parameter.grad = th.ones_like(parameter)
    model.policy.optimizer.param_groups[0]["lr"] = 0.1
    model.policy.optimizer.step()
    model.policy.optimizer.zero_grad()


def write_through_data(model: TRPO) -> None:
    for parameter in model.policy.parameters():
        parameter.data.mul_(1.5)


def move_polyak(model: TRPO) -> None:
    other = copy.deepcopy(model.policy)
    scale_state(other)
    polyak_update(other.parameters(), model.policy.parameters(), 0.5)


def scaled_state(policy: nn.Module) -> dict[str, th.Tensor]:
    return {name: 1.5 * value for name, value in policy.state_dict().items()}


def scale_state(policy: nn.Module) -> None:
    policy.load_state_dict(scaled_state(policy))


def vector_to_parameters(model: TRPO) -> None:
    vector = 1.5 * nn.utils.parameters_to_vector(model.policy.parameters()).detach()
    nn.utils.vector_to_parameters(vector, model.policy.parameters())


def replace_data(*modules: nn.Module) -> None:
    for module in modules:
        for parameter in module.parameters():
            parameter.data = parameter.data * 1.5


def replace_data_of_critic_twice(model: TRPO) -> None:
    for _ in range(2):
        replace_data(model.policy.mlp_extractor.value_net, model.policy.value_net)


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
    "set_parameters": lambda model: model.set_parameters(model.get_parameters() | {"policy": scaled_state(model.policy)}),
    "optimizer step": step_optimizer,
    "fused optimizer step": partial(step_optimizer, fused=True),
    "vector_to_parameters": vector_to_parameters,
    "load_from_vector": lambda model: model.policy.load_from_vector(1.5 * model.policy.parameters_to_vector()),
    "in place": scale_weights,
    "log_std alone": lambda model: model.policy.log_std.detach().add_(0.5),
    "last bias of the critic": lambda model: model.policy.value_net.bias.detach().add_(0.5),
    "data replaced": lambda model: replace_data(model.policy),
    "data of the critic replaced twice": replace_data_of_critic_twice,
    "data overwritten": write_through_data,
    "SB3's polyak_update": move_polyak,
    "parameters replaced": replace_parameters,
    "modules replaced": replace_modules,
}
BY_THE_WEIGHTS = ("actions", "episode_starts", "values", "log_probs")


def after_change(
    change: Callable[[TRPO], None], at: tuple[int, ...], action_space: spaces.Space, **settings: Any
) -> tuple[Trace, Trace]:
    return both(
        lambda: model_of(several(3, action_space=action_space), **settings),
        lambda: Intervening(lambda callback: change(callback.model), at),
    )


@pytest.mark.parametrize("use_sde", [False, True])
@pytest.mark.parametrize("change", ["load_state_dict", "vector_to_parameters"])
def test_a_policy_on_another_device_acts_by_a_copy_that_follows_it(change, use_sde, monkeypatch):
    monkeypatch.setattr(sb3_trpo.rollouts.collection.acting, "CPU", th.device("cpu", 0))
    copied, copied_to = [], Networks.copied_to
    monkeypatch.setattr(Networks, "copied_to", lambda *arguments: copied.append(None) or copied_to(*arguments))
    assert_same(*after_change(CHANGES[change], (4, 9), BOX_ACTION, use_sde=use_sde))
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
def test_weights_changed_during_a_rollout_count_from_the_next_step_on(change):
    ours, theirs = after_change(change, (4, 9, 10), BOX_ACTION)
    assert_same_buffers(ours.buffers[0], theirs.buffers[0], BY_THE_WEIGHTS)


@pytest.mark.parametrize("action_space", ACTIONS.values(), ids=ACTIONS)
def test_weights_changed_during_a_rollout_count_under_every_action_space(action_space):
    ours, theirs = after_change(CHANGES["load_state_dict"], (1, 9), action_space)
    assert_same_buffers(ours.buffers[0], theirs.buffers[0], BY_THE_WEIGHTS)


def draw_noise(model: TRPO) -> None:
    scale_state(model.policy)
    model.policy.reset_noise(3)


@pytest.mark.parametrize(("is_changed", "shape"), [(False, (8, 2)), (True, (3 * N_STEPS, 8, 2))])
def test_parameters_of_the_noise_are_repeated_for_each_state_only_if_they_have_changed(is_changed, shape, monkeypatch):
    """At 256 units and 17 actions, those of 8,192 states take 140 MiB."""
    shapes, build = [], StateDependentHead.with_parameters

    def note(head: StateDependentHead, parameters: Sequence[th.Tensor]) -> Any:
        shapes.append(parameters[0].shape)
        return build(head, parameters)

    def make() -> TRPO:
        env = several(3, action_space=BOX_ACTION)
        return model_of(env, use_sde=True, sde_sample_freq=4, policy_kwargs={"net_arch": [8]})

    def change(callback: Intervening) -> None:
        if is_changed:
            callback.model.policy.log_std.data.add_(0.25)  # which the watch does not notice

    callback = Intervening(change, (4,))
    monkeypatch.setattr(StateDependentHead, "with_parameters", note)
    ours = Trace(make, by_sb3=False, callback=callback)
    assert shapes[-1] == shape
    theirs = Trace(make, by_sb3=True, callback=Intervening(change, (4,)))
    assert_same_buffers(ours.buffers[0], theirs.buffers[0], ("actions", "log_probs"))


@pytest.mark.parametrize("frequency", [-1, 4])
@pytest.mark.parametrize("squash_output", [False, True])
@pytest.mark.parametrize(
    "change",
    [*(CHANGES[name] for name in ("load_state_dict", "vector_to_parameters", "log_std alone", "optimizer step")), draw_noise],
    ids=["load_state_dict", "vector_to_parameters", "log_std alone", "optimizer step", "with new noise"],
)
def test_weights_changed_during_a_rollout_count_under_state_dependent_noise(change, squash_output, frequency):
    """Noise that was drawn with the old standard deviations lasts until it is drawn again."""
    kwargs = {"net_arch": [8], "squash_output": squash_output, "log_std_init": -2.5}

    def make() -> TRPO:
        env = several(3, action_space=BOX_ACTION)
        model = model_of(env, use_sde=True, sde_sample_freq=frequency, policy_kwargs=kwargs)
        model.policy.action_net.weight.detach().div_(10.0)  # or tanh would saturate, and its inverse amplify rounding
        return model

    ours, theirs = both(make, lambda: Intervening(lambda callback: change(callback.model), (4, 9, 10)))
    assert_same_buffers(ours.buffers[0], theirs.buffers[0], BY_THE_WEIGHTS)


@pytest.mark.parametrize("at", [tuple(range(1, N_STEPS)), (N_STEPS,), (3, 14)], ids=["each step", "last step", "between ends"])
def test_each_time_limit_is_bootstrapped_once_by_the_weights_after_its_step(at):
    assert_same(*after_change(CHANGES["load_state_dict"], at, BOX_ACTION))


def test_values_read_after_a_change_of_the_weights_are_those_of_the_step():
    found: list[th.Tensor] = []

    def change(callback: Intervening) -> None:
        scale_state(callback.model.policy)
        found.append(th.cat([callback.locals["values"].flatten(), callback.locals["log_probs"]]))

    both(lambda: model_of(several(3, action_space=BOX_ACTION)), lambda: Intervening(change, (4,)))
    assert_close(*found)


def test_weights_changed_at_the_start_of_a_rollout_count():
    change = AtStart, lambda callback: scale_state(callback.model.policy)
    assert_same(*both(lambda: model_of(several(2)), partial(*change), n_rollouts=2))


@pytest.mark.parametrize("action_space", ACTIONS.values(), ids=ACTIONS)
def test_weights_that_are_nan_are_refused(action_space):
    def make() -> TRPO:
        model = model_of(several(2, action_space=action_space))
        with th.no_grad():
            model.policy.action_net.weight[-1, 0] = np.nan
        return model

    with pytest.raises(ValueError, match="gave NaN"):
        Trace(make, by_sb3=False)


@pytest.mark.parametrize("end", ["complete", "stopped", "error"])
def test_no_hook_is_left_on_the_optimizer(end):
    def act(_: Intervening) -> bool:
        if end == "error":
            raise RuntimeError
        return end == "complete"

    model = model_of(several(2))
    with suppress(RuntimeError):
        Trace(lambda: model, by_sb3=False, callback=Intervening(act))
    assert not model.policy.optimizer._optimizer_step_post_hooks
    assert not optimizer._global_optimizer_post_hooks


@pytest.mark.parametrize("settings", [{}, {"use_sde": True}], ids=str)
def test_a_standard_deviation_that_becomes_nan_during_a_rollout_is_refused(settings):
    spoiling = Intervening(lambda callback: callback.model.policy.log_std.data.fill_(np.nan))
    with pytest.raises(ValueError, match="gave NaN"):
        Trace(lambda: model_of(several(2, action_space=BOX_ACTION), **settings), by_sb3=False, callback=spoiling)
