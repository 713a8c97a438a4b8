import pytest
import torch as th
from helpers.oracle import SMALL_CASES, joint_kl, make_policy, make_transitions, torch_distributions

from sb3_trpo.distributions.registry import CORE_KINDS, kind_of
from sb3_trpo.update.constraints import kl_terms, mean_kl


@pytest.mark.parametrize("case", SMALL_CASES.values(), ids=SMALL_CASES)
def test_the_terms_of_the_kl_are_torchs_divergences_of_the_joint_action_from_old_to_new(case):
    policy = make_policy(case)
    transitions = make_transitions(case, policy, 5)

    def current():
        distribution = transitions.inputs.distribution(policy)
        return distribution, torch_distributions(distribution)

    old_distribution, old = current()
    kind = kind_of(old_distribution, CORE_KINDS)
    z = tuple(part.detach() for part in kind.parameters(old_distribution))
    with th.no_grad():
        for parameter in policy.parameters():
            parameter.mul_(1.1)
    distribution, new = current()
    terms = kl_terms(kind, z, distribution, transitions)
    assert terms.shape == (5,)
    assert (terms > 0.0).all()
    th.testing.assert_close(terms, joint_kl(old, new))


def test_the_mean_kl_is_bounded_by_the_radius():
    constraint = mean_kl(0.03)
    assert (constraint.bound, constraint.terms) == (0.03, kl_terms)
