import math

import pytest
from hypothesis import given, strategies as st

from sb3_trpo.numerics.line_search import BacktrackingLineSearch, Candidate, Constraint, Judgement, judge

FIRST, SECOND = Constraint("first", 1.0), Constraint("second", 3.0)
GOOD, OUTSIDE, WORSE, NAN = (Candidate(*each) for each in ((1.0, (0.5,)), (1.0, (2.0,)), (-1.0, (0.5,)), (math.nan, (0.5,))))


@pytest.mark.parametrize(
    ("surrogate", "value", "judgement"),
    [
        (1.0, 0.5, Judgement.ACCEPTED),
        (1.0, 1.0, Judgement.ACCEPTED),
        (1.0, 0.0, Judgement.ACCEPTED),
        (math.nextafter(0.0, 1.0), 0.5, Judgement.ACCEPTED),
        (1.0, math.nextafter(1.0, 2.0), Judgement.VIOLATED),
        (-1.0, 2.0, Judgement.VIOLATED),
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
def test_a_candidate_must_be_finite_satisfy_its_constraint_and_improve(surrogate, value, judgement):
    assert judge(Candidate(surrogate, (value,)), 0.0, [FIRST]) is judgement


@pytest.mark.parametrize(
    ("values", "judgement"),
    [
        ((1.0, 3.0), Judgement.ACCEPTED),
        ((0.5, 3.5), Judgement.VIOLATED),
        ((1.5, 2.5), Judgement.VIOLATED),
        ((0.5, math.nan), Judgement.NON_FINITE),
        ((1.5, math.nan), Judgement.NON_FINITE),
    ],
)
def test_every_constraint_is_judged(values, judgement):
    assert judge(Candidate(1.0, values), 0.0, [FIRST, SECOND]) is judgement


@pytest.mark.parametrize(
    ("values", "violated"), [((0.5, 3.5), SECOND), ((1.5, 2.5), FIRST), ((1.5, 3.5), FIRST), ((math.nan, 3.5), None)]
)
def test_the_result_names_the_first_constraint_that_is_violated(values, violated):
    result = BacktrackingLineSearch(0.5, 2)(lambda _: Candidate(1.0, values), 0.0, [FIRST, SECOND])
    assert result.violated is violated


@pytest.mark.parametrize("last", [GOOD, WORSE, NAN], ids=["good", "worse", "NaN"])
def test_a_constraint_that_only_larger_steps_violate_is_not_named(last):
    found, _ = search([OUTSIDE, last])
    assert found.violated is None


def test_a_candidate_without_a_value_for_each_constraint_is_refused():
    with pytest.raises(ValueError, match="zip"):
        judge(GOOD, 0.0, [FIRST, SECOND])


def search(candidates, shrinking_factor=0.5):
    """Backtrack over a script of candidates; give the search and the fractions asked for."""
    fractions = []

    def evaluate(fraction):
        fractions.append(fraction)
        return candidates[len(fractions) - 1]

    return BacktrackingLineSearch(shrinking_factor, len(candidates))(evaluate, 0.0, [FIRST]), fractions


@pytest.mark.parametrize("rejected", [OUTSIDE, WORSE, NAN], ids=["outside", "worse", "NaN"])
@pytest.mark.parametrize("n_rejected", [0, 1, 3])
def test_the_first_acceptable_candidate_is_accepted(rejected, n_rejected):
    found, fractions = search([rejected] * n_rejected + [GOOD] * 2)
    assert fractions == [0.5**k for k in range(n_rejected + 1)]
    assert (found.fraction, found.evaluations) == (0.5**n_rejected, n_rejected + 1)
    assert (found.candidate, found.judgement) == (GOOD, Judgement.ACCEPTED)


@pytest.mark.parametrize(
    ("last", "judgement"), [(OUTSIDE, Judgement.VIOLATED), (WORSE, Judgement.NO_IMPROVEMENT), (NAN, Judgement.NON_FINITE)]
)
@pytest.mark.parametrize("earlier", [OUTSIDE, WORSE, NAN], ids=["outside", "worse", "NaN"])
def test_exhausted_search_reports_the_smallest_step_tried(earlier, last, judgement):
    found, fractions = search([earlier, earlier, last])
    assert fractions == [1.0, 0.5, 0.25]
    assert (found.fraction, found.evaluations, found.judgement) == (0.25, 3, judgement)
    assert found.candidate is last


@given(st.floats(0.05, 0.95), st.integers(1, 15), st.floats(1e-3, 2.0))
def test_accepted_fraction_is_the_largest_power_inside_the_region(shrinking_factor, max_iterations, largest_inside):
    line_search = BacktrackingLineSearch(shrinking_factor, max_iterations)
    found = line_search(lambda fraction: Candidate(fraction, (fraction / largest_inside,)), 0.0, [FIRST])
    assert found.fraction == pytest.approx(shrinking_factor ** (found.evaluations - 1))
    if found.judgement is Judgement.ACCEPTED:
        assert found.fraction <= largest_inside
    else:
        assert (found.judgement, found.evaluations) == (Judgement.VIOLATED, max_iterations)
        assert found.fraction > largest_inside * (1.0 - 1e-12)
    if found.evaluations > 1:
        assert found.fraction / shrinking_factor > largest_inside * (1.0 - 1e-12)
