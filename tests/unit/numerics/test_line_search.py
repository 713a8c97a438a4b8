import math

import pytest
from hypothesis import given, strategies as st

from sb3_trpo.numerics.line_search import Candidate, Judgement, backtrack, judge

GOOD, OUTSIDE, WORSE, NAN = Candidate(1.0, 0.5), Candidate(1.0, 2.0), Candidate(-1.0, 0.5), Candidate(math.nan, 0.5)


@pytest.mark.parametrize(
    ("surrogate", "kl", "judgement"),
    [
        (1.0, 0.5, Judgement.ACCEPTED),
        (1.0, 1.0, Judgement.ACCEPTED),
        (1.0, 0.0, Judgement.ACCEPTED),
        (math.nextafter(0.0, 1.0), 0.5, Judgement.ACCEPTED),
        (1.0, math.nextafter(1.0, 2.0), Judgement.OUTSIDE),
        (-1.0, 2.0, Judgement.OUTSIDE),
        (0.0, 0.5, Judgement.NO_IMPROVEMENT),
        (-1.0, 0.5, Judgement.NO_IMPROVEMENT),
        (math.nan, 0.5, Judgement.NON_FINITE),
        (math.inf, 0.5, Judgement.NON_FINITE),
        (-math.inf, 0.5, Judgement.NON_FINITE),
        (1.0, math.nan, Judgement.NON_FINITE),
        (1.0, math.inf, Judgement.NON_FINITE),
        (1.0, -math.inf, Judgement.NON_FINITE),
    ],
)
def test_judge(surrogate, kl, judgement):
    assert judge(Candidate(surrogate, kl), old_surrogate=0.0, target_kl=1.0) is judgement


def search(candidates, shrinking_factor=0.5):
    """Backtrack over a script of candidates; give the search and the fractions asked for."""
    fractions = []

    def evaluate(fraction):
        fractions.append(fraction)
        return candidates[len(fractions) - 1]

    return backtrack(evaluate, 0.0, 1.0, shrinking_factor, len(candidates)), fractions


@pytest.mark.parametrize("rejected", [OUTSIDE, WORSE, NAN], ids=["outside", "worse", "NaN"])
@pytest.mark.parametrize("n_rejected", [0, 1, 3])
def test_first_acceptable_candidate_is_taken(rejected, n_rejected):
    found, fractions = search([rejected] * n_rejected + [GOOD] * 2)
    assert fractions == [0.5**k for k in range(n_rejected + 1)]
    assert (found.fraction, found.evaluations) == (0.5**n_rejected, n_rejected + 1)
    assert (found.candidate, found.judgement) == (GOOD, Judgement.ACCEPTED)


@pytest.mark.parametrize(
    ("last", "judgement"), [(OUTSIDE, Judgement.OUTSIDE), (WORSE, Judgement.NO_IMPROVEMENT), (NAN, Judgement.NON_FINITE)]
)
@pytest.mark.parametrize("earlier", [OUTSIDE, WORSE, NAN], ids=["outside", "worse", "NaN"])
def test_exhausted_search_reports_the_smallest_step_tried(earlier, last, judgement):
    found, fractions = search([earlier, earlier, last])
    assert fractions == [1.0, 0.5, 0.25]
    assert (found.fraction, found.evaluations, found.judgement) == (0.25, 3, judgement)
    assert found.candidate is last


def test_a_single_candidate_is_the_full_step():
    found, fractions = search([OUTSIDE])
    assert fractions == [1.0]
    assert (found.fraction, found.evaluations) == (1.0, 1)


def test_errors_pass_through():
    def evaluate(fraction):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        backtrack(evaluate, 0.0, 1.0, 0.5, 3)


@given(st.floats(0.05, 0.95), st.integers(1, 15), st.floats(1e-3, 2.0))
def test_accepted_fraction_is_the_largest_power_inside_the_region(shrinking_factor, max_iterations, largest_inside):
    found = backtrack(lambda f: Candidate(f, f / largest_inside), 0.0, 1.0, shrinking_factor, max_iterations)
    assert found.fraction == pytest.approx(shrinking_factor ** (found.evaluations - 1))
    if found.judgement is Judgement.ACCEPTED:
        assert found.fraction <= largest_inside
    else:
        assert (found.judgement, found.evaluations) == (Judgement.OUTSIDE, max_iterations)
        assert found.fraction > largest_inside * (1.0 - 1e-12)
    if found.evaluations > 1:
        assert found.fraction / shrinking_factor > largest_inside * (1.0 - 1e-12)
