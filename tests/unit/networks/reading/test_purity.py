"""What a module changes is noticed and undone: attributes, what is in their lists and dicts, and random generators."""

import random

import numpy as np
import pytest
import torch as th
from torch import nn

from sb3_trpo.networks.reading.purity import undisturbed


class Module(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.calls, self.seen, self.table, self.pair = 0, [th.zeros(1)], {"a": th.ones(1)}, (1, 2)


def rng():
    return th.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()


def same_rng(one, other):
    return th.equal(one[0], other[0]) and np.array_equal(one[1], other[1]) and one[2] == other[2]


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
    "torch": lambda _: th.rand(1),
    "NumPy": lambda _: np.random.rand(),
    "Python": lambda _: random.random(),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("is_error", [False, True])
def test_a_change_is_noticed_and_undone(change, is_error):
    module = Module()
    layer, weight, first, one, before = module.layer, module.layer.weight, module.seen[0], module.table["a"], rng()

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
    assert same_rng(before, rng())


def test_what_changes_nothing_is_pure():
    module, before = Module(), rng()
    with undisturbed(module) as purity:
        module.layer(th.ones(1, 2))
    assert purity.is_kept
    assert same_rng(before, rng())
