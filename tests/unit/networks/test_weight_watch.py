"""Which changes of a policy's weights are noticed."""

import copy

import pytest
import torch as th
from helpers.envs import BOX_ACTION, VECTOR
from torch import nn

from sb3_trpo import MlpPolicy
from sb3_trpo.networks.weight_watch import WeightWatch


def step(policy):
    for parameter in policy.parameters():
        parameter.grad = th.ones_like(parameter)
    policy.optimizer.step()


def replace_optimizer(policy):
    policy.optimizer = th.optim.Adam(policy.parameters(), fused=True)


CHANGES = {
    "load_state_dict": lambda policy: policy.load_state_dict(copy.deepcopy(policy.state_dict())),
    "optimizer step": step,
    "write in place": lambda policy: policy.value_net.bias.detach().add_(1.0),
    "data replaced": lambda policy: setattr(policy.value_net.bias, "data", policy.value_net.bias.data.clone()),
    "vector_to_parameters": lambda policy: nn.utils.vector_to_parameters(
        nn.utils.parameters_to_vector(policy.parameters()).detach(), policy.parameters()
    ),
    "optimizer replaced": replace_optimizer,
}


@pytest.fixture(params=[False, True], ids=["plain", "fused"])
def policy(request):
    policy = MlpPolicy(VECTOR, BOX_ACTION, lambda _: 1e-3)
    if request.param:
        replace_optimizer(policy)
    return policy


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_change_is_noticed_until_the_watch_starts_again(policy, change):
    watch = WeightWatch(policy, list(policy.parameters()))
    for _ in range(2):
        watch.start()
        assert not watch.has_changed()
        change(policy)
        assert watch.has_changed()


def test_what_leaves_the_weights_alone_is_not_noticed(policy):
    watch = WeightWatch(policy, list(policy.parameters()))
    watch.start()
    policy.predict(VECTOR.sample())
    copy.deepcopy(policy.state_dict())
    assert not watch.has_changed()


def test_no_hook_is_left_on_any_optimizer(policy):
    watch, optimizers = WeightWatch(policy, list(policy.parameters())), [policy.optimizer]
    watch.start()
    watch.start()
    replace_optimizer(policy)
    optimizers.append(policy.optimizer)
    watch.start()
    assert [len(each._optimizer_step_post_hooks) for each in optimizers] == [0, 1]
    watch.stop()
    watch.stop()
    assert not any(each._optimizer_step_post_hooks for each in optimizers)
