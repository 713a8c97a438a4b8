"""Samples of the stack are counted for the right part of the code."""

import sys

import pytest
from gymnasium import Wrapper, make

from benchmarks.speed.sampling import OUTSIDE, REST, part_of, sampled
from sb3_trpo import TRPO

CALL = "def {name}(inner, *others):\n    return inner(*others)\n"
ENV, ACTOR = "/lib/gymnasium/core.py", "/src/sb3_trpo/rollouts/collection/acting.py"
SB3, TORCH = "/lib/stable_baselines3/common/", "/lib/torch/nn/functional.py"
COLLECTOR = "/src/sb3_trpo/rollouts/collection/fast_collector.py"


def function(file, name="call"):
    """A function of a file that calls the first of its arguments with the others."""
    space = {}
    exec(compile(CALL.format(name=name), file, "exec"), space)
    return space[name]


def part(*calls):
    """The part of a stack, given from the outermost function inwards."""
    *outer, last = [function(*call) if isinstance(call, tuple) else function(call) for call in calls]
    functions = [*outer, last, lambda: part_of(sys._getframe(1))]
    return functions[0](*functions[1:])


LOOP = ((COLLECTOR, "collect"), COLLECTOR)
RECURRENT_LOOP = ("/lib/sb3_contrib/ppo_recurrent/ppo_recurrent.py", "collect_rollouts")


@pytest.mark.parametrize(("calls", "expected"), [
    ((*LOOP, ENV), "env"),
    ((*LOOP, SB3 + "vec_env/dummy_vec_env.py", ENV, TORCH), "env"),
    ((*LOOP, ACTOR, TORCH), "actor"),
    ((*LOOP, SB3 + "policies.py", "/lib/gymnasium/spaces/box.py"), "actor"),
    ((*LOOP, SB3 + "buffers.py"), REST),
    (LOOP, REST),
    ((RECURRENT_LOOP, "/lib/sb3_contrib/common/recurrent/policies.py"), "actor"),
    (("/src/sb3_trpo/rollouts/collection/environment.py", RECURRENT_LOOP), REST),
    (("/src/sb3_trpo/update/policy_step.py", TORCH), OUTSIDE),
    ((("/home/collect.py", "collect"), ENV), OUTSIDE),
])  # fmt: skip
def test_a_sample_counts_for_the_outermost_known_call_of_the_loop(calls, expected):
    assert part(*calls) == expected


class Busy(Wrapper):
    """An environment that takes far longer than anything else."""

    def step(self, action):
        sum(range(200_000))
        return super().step(action)


def test_an_environment_that_takes_nearly_all_of_the_time_is_found_to_do_so():
    model = TRPO("MlpPolicy", Busy(make("CartPole-v1")), n_steps=32, batch_size=32, n_critic_updates=1, device="cpu")
    with sampled() as times:
        model.learn(128)
    assert times["env"] > 0.5 * sum(times.values())
