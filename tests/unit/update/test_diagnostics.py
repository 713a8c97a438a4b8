"""Records as logger keys: what was not reached is left out. ``tests/docs/test_log_page.py`` checks that all are explained."""

from dataclasses import replace

import numpy as np
import pytest
from helpers.ranks import in_threads
from stable_baselines3.common.logger import Logger

from sb3_trpo.numerics.trust_region import Outcome, Step
from sb3_trpo.update.constraints import mean_kl, state_kl
from sb3_trpo.update.diagnostics import explained_variance, improvement_ratio, record, step_diagnostics

CONSTRAINTS = [mean_kl(0.03), state_kl(0.3, 1.0)]
STEP = Step(Outcome.ACCEPTED, surrogate=0.5, values=(0.01, 0.2), gradient_norm=1.0, expected_improvement=0.4, improvement=0.3)


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
    values = step_diagnostics(Step(Outcome.ZERO_GRADIENT, 0.0, gradient_norm=0.0), CONSTRAINTS, entropy=1.0)
    assert not {key for key in values if "cg_" in key or "line_search_steps" in key or "step_fraction" in key}
    assert values["train/is_line_search_success"] == 0.0
    assert values["train/kl_divergence_loss"] == values["train/state_kl"] == 0.0


def test_an_accepted_step_logs_what_its_constraints_measured():
    values = step_diagnostics(STEP, CONSTRAINTS, entropy=1.0)
    assert (values["train/target_kl"], values["train/kl_divergence_loss"], values["train/state_kl"]) == (0.03, 0.01, 0.2)
    unlogged = [CONSTRAINTS[0], replace(CONSTRAINTS[1], log_key=None)]
    assert step_diagnostics(STEP, unlogged, entropy=1.0).keys() == values.keys() - {"train/state_kl"}


def test_the_explained_variance_of_ranks_is_that_of_all_their_values_together():
    rng = np.random.default_rng(0)
    returns, errors = rng.normal(5.0, 2.0, 60).astype(np.float32), rng.normal(-1.0, 0.5, 60).astype(np.float32)
    parts = {0: slice(0, 13), 1: slice(13, 60)}

    def of_rank(communicator):
        part = parts[communicator.rank]
        return explained_variance((returns + errors)[part], returns[part], communicator)

    expected = 1.0 - errors.astype(np.float64).var() / returns.astype(np.float64).var()
    assert in_threads(2, of_rank) == [pytest.approx(expected, rel=1e-5)] * 2
