"""The figures in the README are those of the raw results, and it stays short."""

import re

import pytest
from helpers.pages import ROOT

from benchmarks.learning import report as learning
from benchmarks.learning.published import MARKS
from benchmarks.learning.study import OURS, PEER
from benchmarks.report import raw

README = ROOT / "README.md"
FIGURES = dict(re.findall(r"^\| ([^|]+) \| ([^|]+) \| \[\w+\]", README.read_text(), re.MULTILINE))
"""What was measured, and the figure."""
SHARES = {3: "a third", 4: "a quarter", 5: "a fifth"}
"""By their denominators."""
NUMBERS = ("none", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@pytest.fixture(scope="module")
def study():
    return learning.latest()


def test_it_is_short():
    assert README.stat().st_size < 6_000
    assert len(FIGURES) == 5


def test_returns(study):
    ours, peers = (study.scores("HalfCheetah-v5", method).mean() for method in (OURS, PEER))
    assert FIGURES["return after 1M steps, HalfCheetah-v5"] == f"{ours:,.0f}, against {peers:,.0f} for sb3-contrib's TRPO"


def test_targets(study):
    n_met = sum(study.scores(env, OURS).mean() >= mark.target for env, mark in MARKS.items())
    of = "MuJoCo tasks that reach the target set for them"
    assert FIGURES[of] == f"{NUMBERS[n_met]} of {NUMBERS[len(MARKS)]}"


def test_times():
    measured = raw("speed")["learn"]["results"]["HalfCheetah-v5"]
    peers, ppo = (SHARES[round(measured[name]["median"])] for name in ("learn", "learn_of_ppo"))
    assert FIGURES["time of `learn()`, HalfCheetah-v5"] == f"{peers} of sb3-contrib's, {ppo} of PPO's"


def test_kl():
    largest = {each["package"]: max(each["kls"]) for each in raw("trust_region")["results"] if each["actions"] == "Box(17)"}
    figure = FIGURES["largest KL of a step, Box(17), bound 0.01"]
    assert figure == f"{largest['sb3_trpo']:.3f}, against {largest['sb3_contrib']:.3f} for sb3-contrib"


def test_memory():
    peak = {each["package"]: each["peak_above_rollout_mib"] for each in raw("memory")["results"] if each["frames"] == 2_048}
    figure = FIGURES["memory of an update on 2,048 Atari frames"]
    assert figure == f"{peak['sb3_trpo']:,.0f} MiB, against {peak['sb3_contrib']:,.0f} MiB"
