"""Adam on one vector against torch's own; ``test_flat_critic.py`` has whole fits, interrupts, and options that it lacks."""

import copy

import pytest
import torch as th
from hypothesis import given, strategies as st

from sb3_trpo.update.flat_adam import FlatAdam, flat_adam

OPTIONS = st.fixed_dictionaries(
    {
        "lr": st.floats(1e-5, 0.1),
        "betas": st.tuples(st.floats(0.0, 0.95), st.floats(0.5, 0.9999)),
        "eps": st.floats(1e-10, 1e-3),
        "weight_decay": st.sampled_from([0.0, 0.1]),
    }
)


def made(seed=0, **options):
    """Make two parameters, one of them not contiguous, and an optimizer."""
    generator = th.Generator().manual_seed(seed)
    matrix = th.randn(3, 4, generator=generator, dtype=th.float64).T
    parameters = [th.nn.Parameter(matrix), th.nn.Parameter(th.randn(5, generator=generator, dtype=th.float64))]
    return parameters, th.optim.Adam(parameters, **options)


def gradients(parameters, seed):
    generator = th.Generator().manual_seed(seed)
    return [th.randn(each.shape, generator=generator, dtype=th.float64) for each in parameters]


def step_of_torch(parameters, optimizer, seed):
    for parameter, gradient in zip(parameters, gradients(parameters, seed), strict=True):
        parameter.grad = gradient
    optimizer.step()


def step_of_ours(flat, parameters, seed):
    flat.g.copy_(th.cat([gradient.flatten() for gradient in gradients(parameters, seed)]))
    flat.step()


@given(OPTIONS, st.integers(0, 3), st.integers(1, 5))
def test_steps_after_any_others_are_torchs(options, n_before, n_steps):
    (ours, optimizer), (theirs, expected) = made(**options), made(**options)
    for seed in range(n_before):
        step_of_torch(ours, optimizer, seed)
        step_of_torch(theirs, expected, seed)
    flat = flat_adam(optimizer, ours)
    assert isinstance(flat, FlatAdam)
    for seed in range(n_before, n_before + n_steps):
        step_of_ours(flat, ours, seed)
        step_of_torch(theirs, expected, seed)
    flat.commit()
    tolerance = {"rtol": 1e-10, "atol": 1e-12}
    for one, other in zip(ours, theirs, strict=True):
        th.testing.assert_close(one.detach(), other.detach(), **tolerance)
        for name, value in expected.state[other].items():
            th.testing.assert_close(optimizer.state[one][name], value, **tolerance)


def test_nothing_changes_before_a_commit():
    parameters, optimizer = made()
    step_of_torch(parameters, optimizer, 0)
    before = copy.deepcopy(([each.detach() for each in parameters], optimizer.state_dict()))
    step_of_ours(flat_adam(optimizer, parameters), parameters, 1)
    assert all(map(th.equal, parameters, before[0]))
    th.testing.assert_close(optimizer.state_dict()["state"], before[1]["state"], rtol=0.0, atol=0.0)


@pytest.mark.parametrize("where", ["theta", "m", "v"])
@pytest.mark.parametrize("bad", [th.nan, th.inf])
def test_a_number_that_is_not_finite_is_noticed(where, bad):
    parameters, optimizer = made()
    flat = flat_adam(optimizer, parameters)
    assert flat.is_finite()
    getattr(flat, where)[3] = bad
    assert not flat.is_finite()


def test_it_stands_in_for_no_optimizer_that_does_something_else():
    parameters, optimizer = made()
    assert flat_adam(th.optim.AdamW(parameters), parameters) is None
    assert flat_adam(th.optim.Adam(parameters[:1]), parameters) is None
    assert flat_adam(th.optim.Adam([{"params": [each]} for each in parameters]), parameters) is None
    assert flat_adam(th.optim.Adam(parameters, lr=th.tensor(1e-3)), parameters) is None
    parameters[0].grad = th.ones_like(parameters[0])
    optimizer.step()  # the other parameter has taken no step
    assert flat_adam(optimizer, parameters) is None
