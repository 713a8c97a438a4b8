"""The model of what messages cost."""

import json

import pytest

from benchmarks.common.environment import RESULTS
from benchmarks.scaling import tables
from benchmarks.scaling.model import Cost, fitted

COST = Cost(wake=1e-4, other=1e-5, per_byte=1e-9)


def test_a_message_takes_latency_and_waking_up_in_each_round_and_work_for_each_other_rank():
    assert COST.seconds(2, 1000, 1e-3) == pytest.approx(1e-3 + 1e-4 + 1e-5 + 1e-6)
    assert COST.seconds(64, 1000, 1e-3) == pytest.approx(2 * (1e-3 + 1e-4) + 14 * (1e-5 + 1e-6))
    messages = [{"bytes": 1000, "number": 3}, {"bytes": 0, "number": 2}]
    assert COST.of_all(messages, 2, 0.0) == pytest.approx(3 * (1e-4 + 1e-5 + 1e-6) + 2 * (1e-4 + 1e-5))


def test_costs_are_found_again_in_times_that_follow_the_model():
    configurations = [(n_ranks, size, latency) for n_ranks in (2, 4, 12) for size in (64, 20_000) for latency in (0.0, 1e-3)]
    assert fitted([(*each, COST.seconds(*each)) for each in configurations]) == pytest.approx(COST)


def test_the_check_is_not_fitted_to_what_it_predicts():
    hosts, latency = tables.FITTED_TO
    raw = json.loads((RESULTS / "latency.json").read_text())
    others = [pair for pair in tables.iterations(raw) if pair[0] not in hosts or pair[1] != latency]
    assert len(others) == 7


def test_predictions_for_another_network_are_printed(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["tables", "--latency", "1000"])
    tables.main()
    rows = [row.strip("| ").split(" | ") for row in capsys.readouterr().out.splitlines()[2:]]
    assert all(latency == "1e+06 ms" and cells[0].startswith("0.00 (") for _, latency, *cells in rows)
