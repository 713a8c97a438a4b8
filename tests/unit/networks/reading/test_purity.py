"""What a module changes is noticed and undone, and random numbers are refused."""

import copy
import threading
from collections import deque
from types import SimpleNamespace

import numpy as np
import pytest
import torch as th
from torch import nn
from torch.nn import functional as F  # noqa: N812

from sb3_trpo.networks.reading.purity import undisturbed
from sb3_trpo.numerics.side_effects import SideEffectError


class Module(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.calls, self.seen, self.table, self.pair = 0, [th.zeros(1)], {"a": th.ones(1)}, (1, 2)


CHANGES = {
    "attribute": lambda module: setattr(module, "calls", 1),
    "new attribute": lambda module: setattr(module, "latest", th.ones(2)),
    "missing attribute": lambda module: delattr(module, "pair"),
    "inside": lambda module: setattr(module.layer, "latest", th.ones(2)),
    "list": lambda module: module.seen.append(th.ones(2)),
    "item of a list": lambda module: module.seen.__setitem__(0, th.ones(2)),
    "dict": lambda module: module.table.update(b=1),
    "item of a dict": lambda module: module.table.update(a=th.ones(2)),
    "parameter": lambda module: setattr(module.layer, "weight", nn.Parameter(th.ones(2, 2))),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("is_error", [False, True])
def test_a_change_is_noticed_and_undone(change, is_error):
    module = Module()
    layer, weight, first, one = module.layer, module.layer.weight, module.seen[0], module.table["a"]

    def run():
        with undisturbed(module) as purity:
            change(module)
            if is_error:
                raise RuntimeError
        return purity

    if is_error:
        with pytest.raises(RuntimeError):
            run()
    else:
        assert not run().is_kept
    assert (module.calls, module.pair, hasattr(module, "latest"), hasattr(layer, "latest")) == (0, (1, 2), False, False)
    assert module.layer is layer
    assert layer.weight is weight
    assert len(module.seen) == 1
    assert module.seen[0] is first
    assert list(module.table) == ["a"]
    assert module.table["a"] is one


class Holder(nn.Module):
    """Holds state in all kinds of things."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 3)
        self.layer.bias.grad = th.ones(3)
        self.array, self.objects = np.array([np.nan, 1.0]), np.array([None, "a"])
        self.recent, self.seen, self.inside = deque([1, 2], maxlen=2), {1, 2}, [deque([1])]
        self.object = SimpleNamespace(n=0, log=[])

    def state(self):
        parts = self.array, self.objects, self.recent, self.seen, self.inside, self.object
        weights = [(each.tolist(), each.requires_grad, repr(each.grad)) for each in self.parameters()]
        return copy.deepcopy((parts, weights))


def replace(module, data):
    module.layer.weight.data = data


def replace_its_gradient(module):
    module.layer.bias.grad = None


IN_PLACE = {
    "data": lambda module: replace(module, module.layer.weight.data / 2.0),
    "shape of data": lambda module: replace(module, module.layer.weight.data.t()),
    "gradient": replace_its_gradient,
    "new gradient": lambda module: module.layer.weight.sum().backward(),
    "flag": lambda module: module.layer.weight.requires_grad_(False),
    "array": lambda module: np.add(module.array, 1, out=module.array),
    "objects in an array": lambda module: module.objects.__setitem__(0, "b"),
    "deque": lambda module: module.recent.append(1),
    "set": lambda module: module.seen.add(3),
    "deque in a list": lambda module: module.inside[0].append(2),
    "attribute of an object": lambda module: setattr(module.object, "n", 1),
    "list of an object": lambda module: module.object.log.append(1),
}


@pytest.mark.parametrize("change", IN_PLACE.values(), ids=IN_PLACE)
def test_a_change_in_place_is_noticed_and_undone(change):
    module = Holder()
    parts, before = [*vars(module).values(), *module.parameters()], module.state()
    with undisturbed(module) as purity:
        change(module)
        assert not same(module.state(), before)
    assert not purity.is_kept
    assert all(one is other for one, other in zip(parts, [*vars(module).values(), *module.parameters()], strict=True))
    assert same(module.state(), before)


def same(one, other):
    try:
        np.testing.assert_equal(one, other)
    except AssertionError:
        return False
    return True


@pytest.mark.parametrize("is_caught", [False, True])
def test_a_write_to_a_weight_is_refused_and_noticed(is_caught):
    module = Holder()
    before = module.state()

    def run():
        with undisturbed(module) as purity:
            try:
                module.layer.weight.data.zero_()
            except SideEffectError:
                if not is_caught:
                    raise
        return purity

    if is_caught:
        assert not run().is_kept
    else:
        with pytest.raises(SideEffectError, match="writes to a tensor"):
            run()
    assert same(module.state(), before)


def test_computing_leaves_other_things_in_place():
    module = Holder()
    with undisturbed(module) as purity:
        loss = module.layer(th.ones(1, 2)).relu_().sum()
        th.autograd.grad(loss, [*module.parameters()])
    assert purity.is_kept


def test_what_changes_nothing_is_pure():
    module = Module()
    with undisturbed(module) as purity:
        module.layer(th.ones(1, 2))
    assert purity.is_kept


DRAWS = [
    lambda: th.rand(1),
    lambda: th.randn(2, generator=th.Generator().manual_seed(0)),
    lambda: th.ones(1).normal_(),
    lambda: th.randperm(3),
    lambda: F.dropout(th.ones(9), 0.5, training=True),
    lambda: th.bernoulli(th.ones(1)),
    lambda: th.distributions.Normal(0.0, 1.0).sample(),
]


@pytest.mark.parametrize("draw", DRAWS)
def test_a_draw_is_refused_before_it_happens(draw):
    module, before = Module(), th.get_rng_state()
    with pytest.raises(SideEffectError, match="draws random numbers"), undisturbed(module):
        draw()
    assert th.equal(th.get_rng_state(), before)


def test_other_threads_may_draw():
    drawn = []
    with undisturbed(Module()) as purity:
        thread = threading.Thread(target=lambda: drawn.append(th.rand(1)))
        thread.start()
        thread.join()
    assert purity.is_kept
    assert len(drawn) == 1


@pytest.mark.parametrize("hoard", [np.zeros(2**19), [0] * 10**5, {"all": [[0]] * 10**5}], ids=["array", "list", "nested"])
def test_a_module_that_holds_much_is_not_copied(hoard):
    module = nn.Linear(2, 2)
    module.hoard = hoard
    with pytest.raises(SideEffectError, match="too"), undisturbed(module):
        pytest.fail("the block has begun")
