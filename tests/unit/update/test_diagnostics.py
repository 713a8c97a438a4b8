"""Records as logger keys: what was not reached is left out, and the README explains the rest."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.envs import BOX_ACTION, RandomEnv
from stable_baselines3.common.logger import Logger

from sb3_trpo import TRPO
from sb3_trpo.numerics.trust_region import Outcome, Step
from sb3_trpo.update.diagnostics import improvement_ratio, record, step_diagnostics

README = (Path(__file__).parents[3] / "README.md").read_text()
STEP = Step(Outcome.ACCEPTED, surrogate=0.5, kl=0.01, gradient_norm=1.0, expected_improvement=0.4, improvement=0.3)


def test_what_is_not_known_is_left_out():
    logger = Logger(folder=None, output_formats=[])
    record(logger, {"known": 0.0, "unknown": None})
    assert dict(logger.name_to_value) == {"known": 0.0}


@pytest.mark.parametrize(
    ("changes", "ratio"),
    [({}, 0.75), ({"improvement": None}, None), ({"expected_improvement": 0.0}, None), ({"improvement": -0.4}, -1.0)],
)
def test_the_improvement_ratio_is_achieved_over_expected(changes, ratio):
    assert improvement_ratio(replace(STEP, **changes)) == (None if ratio is None else pytest.approx(ratio))


def test_a_step_without_a_line_search_logs_nothing_about_it():
    values = step_diagnostics(Step(Outcome.ZERO_GRADIENT, 0.0, gradient_norm=0.0), target_kl=0.01, entropy=1.0)
    assert not {key for key in values if "cg_" in key or "line_search_steps" in key or "step_fraction" in key}
    assert values["train/is_line_search_success"] == 0.0
    assert values["train/kl_divergence_loss"] == 0.0


def test_the_readme_explains_every_key_and_no_other():
    model = TRPO("MlpPolicy", RandomEnv(action_space=BOX_ACTION), n_steps=16, batch_size=16, seed=0, device="cpu")
    model.learn(16, log_interval=None)  # nothing is dumped, so every key is still there
    logged = {key for key in model.logger.name_to_value if key.startswith("train/") or key.endswith("_seconds")}
    explained = set(re.findall(r"`((?:train|time)/\w+)`", README.split("## Log keys")[1].split("## Measured")[0]))
    assert logged == explained
