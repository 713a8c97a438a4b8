"""What the speed benchmark stores, on tiny runs, and the tables that it makes of that."""

import json

import numpy as np
import pytest

from benchmarks.common.environment import ROOT
from benchmarks.report import FOLDER, raw
from benchmarks.speed import run, tables
from benchmarks.speed.learn import measure_learn
from benchmarks.speed.shares import measure_shares
from benchmarks.speed.targets import TARGETS


@pytest.mark.filterwarnings("ignore:The policy gives the rollout's actions")  # train() runs several times on a rollout
def test_ratios_are_those_of_the_stored_times():
    measured = measure_learn("CartPole-v1", rounds=3, n_steps=16, batch_size=16)
    times = measured["seconds"]["learn"]
    assert {len(values) for values in times.values()} == {3}
    ours, theirs, bare = (np.array(times[name]) for name in ("ours", "sb3-contrib", "bare env"))
    assert measured["learn"]["median"] == pytest.approx(np.median(theirs / ours), rel=1e-2)
    assert measured["over_bare_env"]["median"] == pytest.approx(np.median(ours / bare), rel=0.1)
    assert measured["steps"] == 32


def test_every_part_of_the_fast_loop_is_found():
    shares = measure_shares("CartPole-v1", least_seconds=0.5, n_critic_updates=1)["shares"]
    assert min(shares[part] for part in ("env", "actor", "buffer and callbacks", "policy step", "critic")) > 0.0
    assert sum(shares.values()) == pytest.approx(1.0)


def test_single_cases_join_the_stored_results(tmp_path, monkeypatch):
    file, by_case = tmp_path / "speed.json", {part: lambda case: {"of": case} for part in run.BY_CASE}
    file.write_text(json.dumps({"growth": 1, "learn": {"results": {"batched": {"of": "before"}}}}))
    monkeypatch.setattr(run, "BY_CASE", by_case)
    monkeypatch.setattr(
        "sys.argv", ["run", "--part", "learn", "--case", "frames", "--case", "Hopper-v5", "--results", str(file)]
    )
    run.main()
    contents = json.loads(file.read_text())
    assert contents["growth"] == 1
    learn = contents["learn"]["results"]
    assert [*learn] == ["Hopper-v5", "frames", "batched"], "the order of the cases"
    assert learn["batched"] == {"of": "before"}
    assert learn["frames"].keys() == {"environment", "of"}


def result(ratio, over_bare):
    spread = {"median": ratio, "min": ratio, "max": ratio}
    return {"learn": spread, "over_bare_env": spread | {"median": over_bare}, "steps_per_second": {"ours": 1e3 * ratio}}


@pytest.mark.parametrize("name", TARGETS)
def test_a_target_is_met_from_its_value_on(name):
    target = TARGETS[name]
    bound = target.over_bare or 1.0
    met = tables.learn_table({name: result(target.learn, bound)})
    missed = tables.learn_table({name: result(target.learn - 0.01, bound + 0.01)})
    n_targets = 1 if target.over_bare is None else 2
    assert (met.count(": met"), met.count(": missed")) == (n_targets, 0)
    assert (missed.count(": met"), missed.count(": missed")) == (0, n_targets)


def test_shares_before_and_after_stand_together():
    parts = {"env": 0.25, "actor": 0.75}
    before = {"batched": parts, "Hopper-v5": parts}
    after = {"Hopper-v5": {"shares": {"env": 0.5, "actor": 0.5}}, "frames": {"shares": parts}}
    rows = [line.strip("| ").split(" | ") for line in tables.shares_table(before, after).splitlines()[2:]]
    assert rows == [
        ["Hopper-v5", "before", "25%", "75%"],
        ["Hopper-v5", "after", "50%", "50%"],
        [TARGETS["frames"].label, "after", "25%", "75%"],
        [TARGETS["batched"].label, "before", "25%", "75%"],
    ]


def test_the_breakdown_of_0_1_0_stays():
    before = raw("speed")["shares_before"]
    assert before["environment"]["packages"]["sb3-trpo"] == "0.1.0"
    assert all(sum(shares.values()) == pytest.approx(1.0) for shares in before["results"].values())


def test_the_page_shows_each_table_and_no_number_of_its_own():
    page = (ROOT / "docs" / "results" / "speed.md").read_text()
    for name in (*tables.tables(raw("speed")), "peers"):
        assert f"results/tables/{name}.md" in page
        assert (FOLDER / f"{name}.md").is_file()
    text = [line for line in page.splitlines() if line.startswith("|")]
    assert text == [], "tables are included, not typed"
