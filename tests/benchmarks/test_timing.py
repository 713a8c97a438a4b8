"""Jobs take turns, and ratios are those of the same round."""

from itertools import count

from benchmarks.common.timing import alternate, ratio


def test_jobs_take_turns_after_one_round_to_warm_up():
    done = []
    clock = count()
    times = alternate({name: lambda name=name: done.append(name) for name in "ab"}, rounds=2, clock=lambda: next(clock))
    assert done == ["a", "b"] * 3
    assert times == {"a": [1, 1], "b": [1, 1]}


def test_the_clock_measures_what_a_job_takes():
    now = [0.0]
    jobs = {"short": lambda: now.__setitem__(0, now[0] + 1.0), "long": lambda: now.__setitem__(0, now[0] + 3.0)}
    times = alternate(jobs, rounds=3, clock=lambda: now[0])
    assert ratio(times["long"], times["short"]) == {"median": 3.0, "min": 3.0, "max": 3.0}


def test_ratios_are_those_of_the_same_round():
    assert ratio([2.0, 8.0, 9.0], [1.0, 2.0, 3.0]) == {"median": 3.0, "min": 2.0, "max": 4.0}
