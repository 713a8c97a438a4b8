import json

import pytest
from helpers.learning_runs import result_of

from benchmarks.learning import beta_actions, plans, run as learning
from sb3_trpo.distributions.beta import BetaDistribution


def test_policies_act_as_asked_only_meanwhile():
    usual = BetaDistribution.mean
    with beta_actions.acting("mode"):
        assert BetaDistribution.mean is BetaDistribution.mode
    assert BetaDistribution.mean is usual


def test_a_policy_is_evaluated_in_all_ways_and_only_once(tmp_path, monkeypatch):
    run = plans.Run("trpo", "beta", "Pendulum-v1", 7, {"policy": "MlpPolicy"})
    (tmp_path / run.name).mkdir(parents=True)
    (tmp_path / run.name / learning.RESULT).write_text(json.dumps(result_of(run, mean=7.0)))
    monkeypatch.setattr(beta_actions, "get_model_path", lambda *given: ("", f"{given[1]}/model.zip", ""))
    monkeypatch.setattr(
        beta_actions,
        "final_returns",
        lambda model, file, *given: [float([*beta_actions.WAYS.values()].index(BetaDistribution.mean))],
    )
    others = [run._replace(label="gaussian"), run._replace(seed=8)]  # another distribution, and a run that has not finished
    monkeypatch.setattr(beta_actions, "runs_of", lambda plan: iter([run, *others]))
    monkeypatch.setattr(beta_actions, "FILE", tmp_path / "beta_actions.json")
    monkeypatch.setattr("sys.argv", ["beta_actions", "--folder", str(tmp_path)])
    beta_actions.main()
    (result,) = json.loads((tmp_path / "beta_actions.json").read_text())["results"]
    assert result == {"env": "Pendulum-v1", "label": "beta", "seed": 7, "mean": 0.0, "mode": 1.0, "with noise": 2.0}
    monkeypatch.setattr(beta_actions, "measure", lambda run, folder: pytest.fail("evaluated again"))
    beta_actions.main()
    assert json.loads((tmp_path / "beta_actions.json").read_text())["results"] == [result]


def test_returns_are_averaged_over_runs():
    results = [
        {"env": "A-v0", "label": "beta", "seed": seed, "mean": 1.0 + seed, "mode": -1.0, "with noise": 1000.0}
        for seed in (0, 1)
    ]
    *_, row = beta_actions.tables({"results": results})["beta_actions"].splitlines()
    assert row == "| A-v0 | beta | 2 | 1.5 | -1.0 | 1,000.0 |"
