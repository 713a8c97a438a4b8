"""Generators of random numbers, and spaces."""

import random

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from helpers.codecs import HUGE, decode, encode, generator_of, round_trip, sent

from sb3_trpo.checkpoint.codecs.codec import Decoder, Encoder, MismatchError
from sb3_trpo.checkpoint.codecs.generators import BIT_GENERATORS, decode_global_generators
from sb3_trpo.checkpoint.codecs.registry import CODECS


def draws_of_numpy(generator):
    uneven = [generator.integers(0, 100, 3, dtype=np.uint8).tolist(), int(generator.integers(0, 2**31, dtype=np.int32))]
    return [generator.random(), *uneven, generator.standard_normal(5).tolist(), generator.permutation(9).tolist()]


@pytest.mark.parametrize("kind", BIT_GENERATORS)
@pytest.mark.parametrize("n_drawn", [0, 1, 7, 1000])
def test_a_generator_continues_where_it_was(kind, n_drawn):
    value, live = generator_of(kind, 1), generator_of(kind, 2)
    for _ in range(n_drawn):
        value.integers(0, 5, dtype=np.int32)
        value.standard_normal()
    assert round_trip(value, live) is live
    assert draws_of_numpy(live) == draws_of_numpy(value)


@pytest.mark.parametrize("kind", BIT_GENERATORS)
@pytest.mark.parametrize("live", [None, 5, "other"])
def test_a_generator_is_created_where_there_is_none_of_its_kind(kind, live):
    value = generator_of(kind, 1)
    value.random(5)
    if live == "other":
        live = generator_of(BIT_GENERATORS[BIT_GENERATORS.index(kind) - 1], 3)
    back = round_trip(value, live)
    assert back is not live
    assert type(back.bit_generator).__name__ == kind
    assert draws_of_numpy(back) == draws_of_numpy(value)


@pytest.mark.parametrize("kind", BIT_GENERATORS)
def test_encoding_a_generator_does_not_draw_from_it(kind):
    value, twin = generator_of(kind, 1), generator_of(kind, 1)
    sent(value)
    assert draws_of_numpy(value) == draws_of_numpy(twin)


OTHERS = {
    "RandomState": (np.random.RandomState, lambda each, n: each.standard_normal(n).tolist()),
    "Random": (random.Random, lambda each, n: [each.gauss(0, 1) for _ in range(n)]),
    "torch": (lambda seed: th.Generator().manual_seed(seed), lambda each, n: th.randn(n, generator=each).tolist()),
}


@pytest.mark.parametrize("n_drawn", [0, 1, 700])
@pytest.mark.parametrize("kind", OTHERS)
def test_a_generator_of_another_library_continues_where_it_was_or_is_created(kind, n_drawn):
    make, draw = OTHERS[kind]
    value, live = make(1), make(2)
    draw(value, n_drawn)  # an odd number leaves one of a pair behind
    created = round_trip(value, None)
    assert round_trip(value, live) is live
    assert draw(live, 1001) == draw(created, 1001) == draw(value, 1001)


def nested_space(seed):
    inner = gym.spaces.Dict(
        box=gym.spaces.Box(-1, 1, (2,)), pair=gym.spaces.Tuple((gym.spaces.Discrete(9), gym.spaces.MultiBinary(4)))
    )
    space = gym.spaces.Tuple((inner, gym.spaces.MultiDiscrete([3, 4]), gym.spaces.Sequence(gym.spaces.Discrete(5))))
    space.seed(seed)
    return space


def test_nested_spaces_continue_where_they_were():
    value, live = nested_space(1), nested_space(2)
    value.sample()
    low = live[0]["box"].low
    assert round_trip(value, live) is live
    assert repr([live.sample() for _ in range(5)]) == repr([value.sample() for _ in range(5)])
    assert live[0]["box"].low is low


def test_bounds_of_a_space_stay_the_scripts():
    value, live = gym.spaces.Box(-1, 1, (2,), seed=1), gym.spaces.Box(-5, 5, (2,), seed=2)
    round_trip(value, live)
    assert live.low.tolist() == [-5, -5]
    value.low, value.high = live.low, live.high
    assert live.np_random.random() == value.np_random.random()


def test_a_space_that_has_not_drawn_yet_is_restored_without_a_generator():
    value, live = gym.spaces.Discrete(3), gym.spaces.Discrete(3, seed=1)
    round_trip(value, live)
    assert live._np_random is None


def test_a_space_of_other_parts_is_refused():
    value = gym.spaces.Tuple([gym.spaces.Discrete(2)] * 2)
    with pytest.raises(MismatchError, match="2 parts"):
        round_trip(value, gym.spaces.Tuple([gym.spaces.Discrete(2)]))


@pytest.mark.parametrize("name", ["seed", "default_rng", "RandomState", "rand", "test"])
def test_an_encoding_cannot_name_a_function_that_makes_a_generator(name, monkeypatch):
    calls = []
    monkeypatch.setattr(np.random, name, lambda *args: calls.append(name))
    with pytest.raises(MismatchError):
        decode({"generator": name, "state": {"dict": []}})
    assert calls == []


def numbers_of(kind, **changes):
    state = generator_of(kind, 1).bit_generator.state
    state["state"].update({name: value for name, value in changes.items() if name in state["state"]})
    state.update({name: value for name, value in changes.items() if name in state and name != "state"})
    node, encoder = encode(state)
    return {"generator": kind, "state": node}, encoder.arrays


@pytest.mark.parametrize("value", [HUGE, -1, "x", None, 1.5, [], 2**128], ids=lambda value: repr(value)[:9])
@pytest.mark.parametrize("kind", ["PCG64", "PCG64DXSM"])
@pytest.mark.parametrize("name", ["inc", "uinteger", "has_uint32", "bit_generator"])
def test_absurd_numbers_in_a_generator_are_restored_or_refused(kind, name, value):
    node, arrays = numbers_of(kind, **{name: value})
    try:
        back = decode(node, **arrays)
    except MismatchError:
        return
    assert 0 <= back.random() < 1


@pytest.mark.parametrize("place", [-1, -(2**30), 625, 2**30])
def test_a_generator_that_would_read_beyond_its_memory_is_refused(place):
    state = np.random.RandomState(1).get_state(legacy=False)
    state["state"]["pos"] = place
    node, encoder = encode(state)
    forged = [numbers_of("MT19937", pos=place), numbers_of("Philox", buffer_pos=place)]
    for content, arrays in [*forged, ({"random_state": node}, encoder.arrays)]:
        with pytest.raises(MismatchError):
            decode(content, **arrays)


@pytest.mark.parametrize("kind", ["Generator", *OTHERS])
def test_generators_that_only_the_script_shares_are_restored_apart(kind):
    make, draw = {"Generator": (np.random.default_rng, lambda each, n: each.random(n).tolist()), **OTHERS}[kind]
    value, live = [make(1), make(2)], make(0)
    back = round_trip(value, [live, live])
    assert [draw(each, 3) for each in back] == [draw(each, 3) for each in value]


@pytest.mark.parametrize("kind", BIT_GENERATORS)
@pytest.mark.parametrize("there", [None, "MT19937", "same", "same, twice"])
def test_a_legacy_generator_around_any_bit_generator_is_restored(kind, there):
    def legacy(name, seed):
        return np.random.RandomState(getattr(np.random, name)(seed))

    value = [legacy(kind, 1), legacy(kind, 2)]
    live = None if there is None else legacy("MT19937" if there == "MT19937" else kind, 0)
    other = live if there == "same, twice" else None
    back = round_trip(value, [live, other])
    assert [each.random() for each in back] == [each.random() for each in value]
    assert (back[0] is live) == (live is not None and (kind == "MT19937" or there != "MT19937"))


@pytest.mark.parametrize("n_here", [0, 1, 2, 3])
def test_the_generators_of_gpus_that_are_here_are_restored(n_here, monkeypatch):
    restored = {}
    monkeypatch.setattr(th.cuda, "is_available", lambda: n_here > 0)
    monkeypatch.setattr(th.cuda, "device_count", lambda: n_here)
    monkeypatch.setattr(th.cuda, "set_rng_state", lambda state, device: restored.update({device: state.tolist()}))
    encoder = Encoder(CODECS)
    states = encoder.encode([th.tensor([1], dtype=th.uint8), th.tensor([2], dtype=th.uint8)], "generators/cuda")
    decode_global_generators({"cuda": states}, Decoder(CODECS, encoder.arrays))
    assert restored == {device: [device + 1] for device in range(min(n_here, 2))}
