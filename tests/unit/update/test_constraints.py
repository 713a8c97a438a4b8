from sb3_trpo.update.constraints import kl_terms, mean_kl, state_kl


def test_the_mean_kl_is_bounded_by_the_radius():
    """``test_surrogate.py`` compares the terms with torch's divergences."""
    constraint = mean_kl(0.03)
    assert (constraint.bound, constraint.terms) == (0.03, kl_terms)


def test_the_kl_of_single_states_is_bounded_at_the_level_that_its_name_tells():
    largest, most = state_kl(0.3, 1.0), state_kl(0.2, 0.95)
    assert (largest.bound, largest.terms, largest.level) == (0.3, kl_terms, 1.0)
    assert (most.bound, most.terms, most.level) == (0.2, kl_terms, 0.95)
    assert "largest" in largest.name
    assert "0.95-quantile" in most.name
