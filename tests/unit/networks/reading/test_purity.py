"""What a module changes is noticed and undone, and random numbers are refused."""

import threading

import pytest
import torch as th
from torch import nn
from torch.nn import functional as F  # noqa: N812

from sb3_trpo.networks.reading.purity import undisturbed
from sb3_trpo.numerics.torch_private import RandomNumberError


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
    with pytest.raises(RandomNumberError, match="draws random numbers"), undisturbed(module):
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
