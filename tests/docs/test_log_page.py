"""The page on the log explains every key that an update records and every outcome, and nothing else."""

import math
import re

import pytest
from helpers.costs import costly_model
from helpers.envs import BOX_ACTION, RandomEnv
from helpers.pages import DOCS

from sb3_trpo import TRPO
from sb3_trpo.numerics.trust_region import Outcome
from sb3_trpo.update.advice import ADVICE
from sb3_trpo.update.critic import FitOutcome

PAGE = (DOCS / "guide" / "log.md").read_text()
KEYS = {f"outcomes/{outcome.name.lower()}": outcome for outcome in Outcome}
KEYS |= {f"outcomes/critic_{outcome.name.lower()}": outcome for outcome in FitOutcome}
BETA = {"policy_kwargs": {"action_distribution": "beta"}}
ROWS = set(re.findall(r"^\| `((?:train|time|outcomes)/\w+)` \|", PAGE, re.MULTILINE))


@pytest.mark.parametrize("settings", [{}, {"use_sde": True}, BETA], ids=["", "gSDE", "Beta"])
def test_every_key_that_an_update_records_has_a_row_and_no_other_has(settings):
    settings = settings | {"n_steps": 16, "batch_size": 16, "max_state_kl": math.inf}
    model = TRPO("MlpPolicy", RandomEnv(action_space=BOX_ACTION), seed=0, device="cpu", **settings)
    model.learn(16, log_interval=None)  # nothing is dumped, so every key is still there
    recorded = set(model.logger.name_to_value)
    assert {"train/value_loss", "time/critic_seconds", "outcomes/critic_fitted"} < recorded
    assert recorded <= ROWS
    assert {key for key in recorded if not key.startswith("outcomes/")} == ROWS - KEYS.keys()


@pytest.mark.parametrize("key", KEYS)
def test_every_outcome_has_a_row_with_its_name_and_its_advice(key):
    outcome = KEYS[key]
    assert f"| `{key}` | {outcome.value} | {ADVICE[outcome]} |\n" in PAGE


def test_every_key_of_a_cost_has_a_row_and_no_other_has():
    model = costly_model(limit=0.5)
    model.learn(64, log_interval=None)
    recorded = {key for key in model.logger.name_to_value if key.startswith("cost/")}
    assert recorded == {f"cost/cost/{name}" for name in re.findall(r"`cost/KEY/(\w+)`(?=[^|\n]*\| )", PAGE)}
    assert {key for key in model.logger.name_to_value if key.startswith(("train/", "time/"))} <= ROWS


def test_only_outcomes_have_rows_of_outcomes():
    assert {key for key in ROWS if key.startswith("outcomes/")} == KEYS.keys()
