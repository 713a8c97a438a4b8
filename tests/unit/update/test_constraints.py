from sb3_trpo.update.constraints import kl_terms, mean_kl


def test_the_mean_kl_is_bounded_by_the_radius():
    """``test_surrogate.py`` compares the terms with torch's divergences."""
    constraint = mean_kl(0.03)
    assert (constraint.bound, constraint.terms) == (0.03, kl_terms)
