import pytest

from sb3_trpo.numerics.trust_region import Outcome
from sb3_trpo.update.advice import ADVICE
from sb3_trpo.update.critic import FitOutcome


def test_every_outcome_has_advice():
    assert ADVICE.keys() == {*Outcome, *FitOutcome}


@pytest.mark.parametrize("advice", ADVICE.values())
def test_advice_is_a_sentence(advice):
    assert advice.endswith(".")
    assert len(advice.split()) >= 5
