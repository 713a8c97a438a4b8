"""Contract: what is logged, printed and counted."""

import csv
import math
import re
from pathlib import Path

import pytest
import sb3_contrib
from helpers.envs import BOX_ACTION, RandomEnv
from stable_baselines3.common.logger import Logger, configure
from stable_baselines3.common.monitor import Monitor
from torch.nn.init import zeros_

from sb3_trpo import TRPO
from sb3_trpo.numerics.trust_region import Outcome
from sb3_trpo.update.advice import ADVICE

SMALL = {"n_steps": 64, "batch_size": 32, "n_critic_updates": 2, "seed": 0}

NEW_KEYS = {
    "outcomes/accepted",
    "outcomes/critic_fitted",
    "train/line_search_steps",
    "train/step_fraction",
    "train/cg_iterations",
    "train/cg_residual",
    "train/expected_improvement",
    "train/improvement",
    "train/improvement_ratio",
    "train/target_kl",
    "train/entropy",
    "train/gradient_norm",
    "train/n_rejected_steps",
    "train/explained_variance",
    "time/collect_seconds",
    "time/policy_step_seconds",
    "time/critic_seconds",
}


def rows(model, folder: Path, total_timesteps: int = 192) -> list[dict[str, str]]:
    """Train with a CSV log and read it; a row holds the rollout before and the update before that."""
    model.set_logger(configure(str(folder), ["csv"]))
    model.learn(total_timesteps)
    model.logger.close()
    with (folder / "progress.csv").open() as file:
        return list(csv.DictReader(file))


def numbers(row: dict[str, str]) -> dict[str, float]:
    return {key: float(value) for key, value in row.items() if key.startswith("train/")}


@pytest.mark.parametrize("make_env", [RandomEnv, lambda: RandomEnv(action_space=BOX_ACTION)], ids=["Discrete", "Box"])
def test_the_log_has_every_key_of_sb3_contrib_and_ours(make_env, tmp_path):
    theirs = rows(sb3_contrib.TRPO("MlpPolicy", Monitor(make_env()), **SMALL), tmp_path / "theirs")[-1]
    ours = rows(TRPO("MlpPolicy", Monitor(make_env()), **SMALL), tmp_path / "ours")[-1]
    expected = {key for key, value in theirs.items() if value}
    assert {"train/policy_objective", "train/value_loss", "train/kl_divergence_loss", "rollout/ep_rew_mean"} < expected
    assert expected | NEW_KEYS <= {key for key, value in ours.items() if value}


def test_logged_values_agree_with_one_another(tmp_path):
    model = TRPO("MlpPolicy", RandomEnv(action_space=BOX_ACTION), target_kl=0.02, **SMALL)
    (_, *updates) = rows(model, tmp_path)
    assert len(updates) == 2
    for n_updates, row in enumerate(updates, start=1):
        log = numbers(row)
        assert row["outcomes/accepted"] == row["outcomes/critic_fitted"] == str(n_updates)
        assert all(map(math.isfinite, log.values()))
        assert 0.0 < log["train/kl_divergence_loss"] <= log["train/target_kl"] == 0.02
        assert log["train/is_line_search_success"] == 1.0
        assert log["train/n_updates"] == n_updates
        assert log["train/n_rejected_steps"] == 0
        assert log["train/step_fraction"] == pytest.approx(0.8 ** (log["train/line_search_steps"] - 1))
        assert 1 <= log["train/cg_iterations"] <= 15
        assert 0.0 <= log["train/cg_residual"] < 1.0
        assert log["train/improvement_ratio"] == pytest.approx(
            log["train/improvement"] / log["train/expected_improvement"], rel=1e-4
        )
    first = numbers(updates[0])
    assert first["train/entropy"] == pytest.approx(2 * 0.5 * math.log(2 * math.pi * math.e), abs=1e-4)  # joint, std 1


class Averaging(Logger):
    """Averages what it is given, as imitation's logger does."""

    def record(self, key, value, exclude=None):
        self.record_mean(key, value, exclude)


def test_a_logger_may_average_all_that_is_recorded(tmp_path):
    model = TRPO("MlpPolicy", Monitor(RandomEnv(action_space=BOX_ACTION)), **SMALL)
    model.set_logger(Averaging(str(tmp_path), []))
    model.learn(192, log_interval=100)
    log = model.logger.name_to_value
    assert model.logger.name_to_count["train/n_updates"] == 3
    assert log["train/n_updates"] == log["outcomes/critic_fitted"] == (1 + 2 + 3) / 3
    assert {"train/kl_divergence_loss", "outcomes/accepted"} <= log.keys()
    assert all(isinstance(float(value), float) for value in log.values())


def test_the_table_names_the_outcomes(tmp_path):
    model = TRPO("MlpPolicy", RandomEnv(), target_kl=vanishing, **SMALL)
    model.set_logger(configure(str(tmp_path), ["log"]))
    model.learn(192)
    model.logger.dump(192)
    table = (tmp_path / "log.txt").read_text().rpartition("outcomes/")[2]
    rows = dict(re.findall(r"\|\s+(\w+)\s+\|\s+(\S+)\s+\|", table))
    assert (rows["accepted"], rows["empty_region"], rows["critic_fitted"]) == ("1", "2", "3")


def test_outcomes_are_counted_on_after_loading(tmp_path):
    model = TRPO("MlpPolicy", RandomEnv(), **SMALL).learn(128)
    model.save(tmp_path / "model")
    loaded = TRPO.load(tmp_path / "model", env=RandomEnv())
    assert loaded.policy_outcome is None
    loaded.learn(64, reset_num_timesteps=False)
    assert loaded.logger.name_to_value["outcomes/accepted"] == 3


def test_the_std_is_logged_where_there_is_one(tmp_path):
    box = rows(TRPO("MlpPolicy", RandomEnv(action_space=BOX_ACTION), **SMALL), tmp_path / "box")[-1]
    assert float(box["train/std"]) == pytest.approx(1.0, abs=0.3)
    assert "train/std" not in rows(TRPO("MlpPolicy", RandomEnv(), **SMALL), tmp_path / "discrete")[-1]


def test_an_update_without_a_step_logs_no_stale_values(tmp_path):
    model = TRPO("MlpPolicy", RandomEnv(), target_kl=lambda progress: 0.01 if progress > 0.5 else 0.0, **SMALL)
    (_, taken, empty) = rows(model, tmp_path, 192)
    assert (taken["outcomes/accepted"], taken["outcomes/empty_region"]) == ("1", "")
    assert (empty["outcomes/accepted"], empty["outcomes/empty_region"]) == ("1", "1")
    assert taken["train/step_fraction"]
    assert not empty["train/step_fraction"]
    assert not empty["train/cg_iterations"]
    assert float(empty["train/kl_divergence_loss"]) == float(empty["train/is_line_search_success"]) == 0.0


def vanishing(progress_remaining: float) -> float:
    """Give a radius that is 0 at every update but the first of three."""
    return 0.01 if progress_remaining > 0.5 else 0.0


def test_steps_not_taken_are_counted_over_calls_of_learn():
    model = TRPO("MlpPolicy", RandomEnv(), target_kl=vanishing, **SMALL).learn(192)
    assert model.logger.name_to_value["train/n_rejected_steps"] == 2
    model.learn(64)
    assert model.logger.name_to_value["train/n_rejected_steps"] == 3


def test_advice_is_printed_once_per_kind(capsys):
    env = RandomEnv(action_space=BOX_ACTION, reward_scale=0.0)
    model = TRPO("MlpPolicy", env, target_kl=vanishing, verbose=1, **SMALL)
    zeros_(model.policy.value_net.weight)
    model.learn(192)
    printed = capsys.readouterr().out
    assert printed.count(ADVICE[Outcome.ZERO_GRADIENT]) == 1
    assert ADVICE[Outcome.EMPTY_REGION] not in printed

    model.ent_coef = 1.0
    model.learn(192)
    printed = capsys.readouterr().out
    assert printed.count(ADVICE[Outcome.EMPTY_REGION]) == 1
    assert ADVICE[Outcome.ZERO_GRADIENT] not in printed
    assert ADVICE[Outcome.ACCEPTED] not in printed


@pytest.mark.parametrize("radius", ["target_kl", "max_state_kl"])
def test_a_radius_that_falls_to_zero_by_the_end_wants_no_advice(radius, capsys):
    model = TRPO("MlpPolicy", RandomEnv(), verbose=1, **SMALL, **{radius: lambda remaining: remaining}).learn(128)
    assert model.policy_outcome.value == Outcome.EMPTY_REGION.value
    assert ADVICE[Outcome.EMPTY_REGION] not in capsys.readouterr().out
    model.learn(64)  # a single update, at the end of the schedule
    assert ADVICE[Outcome.EMPTY_REGION] in capsys.readouterr().out


def test_nothing_is_printed_unless_asked(capsys):
    TRPO("MlpPolicy", RandomEnv(), target_kl=vanishing, **SMALL).learn(192)
    assert capsys.readouterr() == ("", "")


def test_tensorboard_gets_a_run_named_after_the_algorithm(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    model = TRPO("MlpPolicy", RandomEnv(), tensorboard_log=str(tmp_path), **SMALL).learn(192)
    model.learn(64, tb_log_name="other")
    assert {path.name for path in tmp_path.iterdir()} == {"TRPO_1", "other_1"}
    (event_file,) = (tmp_path / "TRPO_1").glob("events.out.tfevents.*")
    events = EventAccumulator(str(event_file)).Reload()
    assert NEW_KEYS | {"train/kl_divergence_loss", "train/policy_objective"} <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Scalars("train/entropy")] == [128, 192]
