"""Other packages take turns with ours, in environments whose versions are pinned."""

import re

import pytest

from benchmarks.common.environment import ROOT
from benchmarks.peers import run
from benchmarks.peers.tables import PEERS, tables


def test_packages_take_turns(monkeypatch):
    seconds = iter(range(1, 5))
    monkeypatch.setattr(run, "measure", lambda name, n: {"steps": n, "cpu_seconds": next(seconds), "versions": {name: "1"}})
    results = run.measure_in_turn(["sb3_trpo", "skrl"], rounds=2, n_rollouts=3)
    assert {name: [each["cpu_seconds"] for each in result["rounds"]] for name, result in results.items()} == {
        "sb3_trpo": [1, 3],
        "skrl": [2, 4],
    }
    raw = {"results": results, "settings": {"passes": 10, "target_kl": 0.01}}
    last = tables(raw)["peers"].splitlines()[-1].strip("| ").split(" | ")
    assert last[1:4] == ["skrl 1", "1", "1.67 (1.33 to 2.00)"]


def test_a_script_times_the_steps_after_those_that_warm_up():
    result = run.measure("sb3_trpo", 1)
    assert result["steps"] == 2048
    assert result["cpu_seconds"] > 0.0
    assert result["versions"].keys() == {"sb3-trpo", "torch"}


def test_a_script_that_fails_is_named(monkeypatch):
    monkeypatch.setitem(run.PEERS, "skrl", run.Peer("stable_baselines", ("nothing",), has_own_environment=False))
    with pytest.raises(RuntimeError, match=r"(?s)^skrl failed:.*No module named 'nothing'"):
        run.measure("skrl", 1)


@pytest.mark.parametrize("name", [name for name, peer in run.PEERS.items() if peer.has_own_environment])
def test_versions_are_pinned_and_torch_is_ours(name):
    lines = (run.REQUIREMENTS / f"{name}.txt").read_text().splitlines()
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines)
    (torch,) = (line for line in lines if line.startswith("torch=="))
    assert torch in (ROOT / "constraints.txt").read_text().splitlines()


def test_every_package_has_a_row():
    assert PEERS.keys() == run.PEERS.keys()
