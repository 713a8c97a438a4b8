"""Side effects of torch's operations are refused before they happen."""

from contextlib import suppress

import pytest
import torch as th
from torch import nn
from torch.nn import functional as F  # noqa: N812

from sb3_trpo.numerics.side_effects import SideEffectError, without_side_effects


def test_a_draw_is_refused():
    before = th.get_rng_state()
    with pytest.raises(SideEffectError, match="draws"), without_side_effects():
        th.rand(1)
    assert th.equal(th.get_rng_state(), before)
    assert th.ones(2).sum() == 2.0


WRITES = {
    "in place": lambda x: x.add_(1.0),
    "of a view": lambda x: x[:1].zero_(),
    "of an item": lambda x: x.__setitem__(0, 3.0),
    "of data": lambda x: x.data.clamp_(0.0, 0.5),
    "of what is detached": lambda x: x.detach().mul_(2.0),
    "as out": lambda x: th.mul(x, x, out=x),
    "of a list": lambda x: th._foreach_mul_([th.ones(1), x], 2.0),
    "of the shape": lambda x: x.resize_(1),
    "of the memory": lambda x: x.set_(th.zeros(5)),
    "by torch.nn": lambda x: nn.init.constant_(x, 2.0),
    "of an activation": lambda x: F.relu(x, inplace=True),
    "of what numpy holds": lambda x: th.from_numpy(x.numpy()).add_(1.0),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_a_write_to_an_old_tensor_is_refused(write):
    x = th.tensor([-1.0, 2.0])
    with pytest.raises(SideEffectError, match="writes to a tensor"), without_side_effects():
        write(x)
    assert th.equal(x, th.tensor([-1.0, 2.0]))


@pytest.mark.parametrize("name", ["in place", "of a view", "of an item", "as out", "by torch.nn", "of an activation"])
def test_a_write_to_a_new_tensor_is_not_refused(name):
    old = th.tensor([-1.0, 2.0])
    with without_side_effects() as refusing:
        new = old + 0.0
        WRITES[name](new)
    assert not th.equal(new, old)
    assert not refusing.has_refused


def test_gradients_may_be_computed_and_added_up():
    layer = nn.Linear(2, 2)

    def gradients():
        x = layer(th.ones(3, 2))
        return th.autograd.grad((F.relu(x, inplace=True) + layer(x)).sum(), [*layer.parameters()])

    expected = gradients()
    with without_side_effects():
        found = gradients()
    assert all(map(th.equal, found, expected))


def test_a_refusal_that_is_caught_is_noticed():
    x = th.zeros(1)
    with without_side_effects() as refusing, suppress(SideEffectError):
        x.add_(1.0)
    assert refusing.has_refused
    assert x == 0.0
