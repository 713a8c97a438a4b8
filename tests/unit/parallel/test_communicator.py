import torch as th

from sb3_trpo.parallel.communicator import ALONE


def test_every_exchange_of_a_rank_that_is_alone_is_the_identity():
    values = th.tensor([1.5, -2.0])
    ALONE.broadcast([values])
    assert values.tolist() == [1.5, -2.0]
    assert ALONE.sum(values) is values
    assert ALONE.mean(values, 4.0).equal(values / 4.0)
    assert ALONE.gather(values).equal(values[None])
    assert ALONE.gather_objects("a") == ["a"]
    assert ALONE.broadcast_object("a") == "a"


def test_a_rank_that_is_alone_is_the_first_and_has_nobody_to_leave():
    ALONE.leave(KeyError("nobody reads this"))
    assert ALONE.is_first
    assert ALONE.size == 1
