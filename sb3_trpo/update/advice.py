"""What users can do about the outcomes of an update, one sentence for each."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from sb3_trpo.numerics.trust_region import Outcome
from sb3_trpo.parallel.communicator import ALONE, Communicator
from sb3_trpo.update.critic import FitOutcome
from sb3_trpo.update.surrogate import MISMATCH

ADVICE: Mapping[Outcome | FitOutcome, str] = {
    Outcome.ACCEPTED: "The step was taken; there is nothing to do.",
    Outcome.LIMITED: "The step was taken, and ends on a limit; there is nothing to do.",
    Outcome.RECOVERED: "A limit cannot be kept yet, so the step went towards it as far as target_kl allows. At first this is "
    "usual; if the cost does not fall, raise the limit, n_steps or target_kl.",
    Outcome.EMPTY_REGION: "target_kl or max_state_kl has reached 0, so the policy stays; end its schedule above 0 to go on "
    "learning.",
    Outcome.ZERO_GRADIENT: "The advantages carry no signal; check that the reward varies, or collect more steps (n_steps).",
    Outcome.LOST_IN_ROUNDING: "Rounding errors change the policy as much as a step may: no KL can be trusted. Normalize the "
    "observations, with VecNormalize for instance, or raise target_kl.",
    Outcome.NON_FINITE_GRADIENT: "The policy was left alone; look for infinite log-probabilities (a std near 0, saturated "
    "logits) and for observations or rewards of huge size, which VecNormalize would scale.",
    Outcome.NON_POSITIVE_CURVATURE: "The Fisher matrix is singular along the gradient to rounding; raise cg_damping.",
    Outcome.NON_FINITE_CURVATURE: "A Fisher product overflowed; raise cg_damping and look for a std or probability near 0.",
    Outcome.NON_FINITE_CANDIDATE: "Even the smallest step made the policy non-finite; lower target_kl or raise cg_damping.",
    Outcome.KL_NEVER_SATISFIED: "Even the smallest step left the trust region; raise line_search_max_iter, lower "
    "line_search_shrinking_factor, or raise cg_damping.",
    Outcome.CONSTRAINT_NEVER_SATISFIED: "Even the smallest step violated a constraint other than the KL; raise its bound or "
    "line_search_max_iter.",
    Outcome.NO_IMPROVEMENT: "No step inside the trust region improved the surrogate; once in a while this is harmless, "
    "otherwise raise cg_max_steps or n_steps, or lower target_kl.",
    Outcome.NO_RECOVERY: "No step inside the trust region lowered a cost that is over its limit; once in a while this is "
    "harmless, otherwise raise n_steps or line_search_max_iter, or lower target_kl.",
    FitOutcome.FITTED: "The critic was fitted; there is nothing to do.",
    FitOutcome.DIVERGED: "The critic became non-finite and was put back; lower learning_rate, set max_grad_norm, or scale the "
    "rewards with VecNormalize.",
}
"""What to do if an outcome persists."""


def is_unwanted(outcome: Outcome | FitOutcome, is_end: bool) -> bool:
    """
    Return whether a user may want to do something about an outcome.

    :param outcome: how a step or a fit ended
    :param is_end: whether this is the last of several updates: a schedule of a radius may have reached 0 there
    :return: whether to give advice
    """
    is_success = outcome is FitOutcome.FITTED or (isinstance(outcome, Outcome) and outcome.is_accepted)
    return not is_success and not (is_end and outcome is Outcome.EMPTY_REGION)


def advise(outcome: Outcome | FitOutcome, what: str, verbose: int) -> None:
    """
    Print what to do about an outcome, or warn if nothing will ever be learned.

    :param outcome: how a step or a fit ended
    :param what: algorithm, number of the update, and what happened in it
    :param verbose: the model's verbosity; at 0 only the warning is given
    """
    advice = f"{what}. {ADVICE[outcome]}"
    if outcome is Outcome.LOST_IN_ROUNDING:
        warnings.warn(advice, UserWarning, stacklevel=2)
    elif verbose >= 1:
        print(advice)


def warn_about_mismatch(log_prob_error: float) -> None:
    """
    Warn that the rollout does not match what the policy saw and did.

    :param log_prob_error: root mean square difference between the log-probabilities now and when the policy acted, in nats
    """
    warnings.warn(
        f"The policy gives the rollout's actions log-probabilities that differ by {log_prob_error:.2g} nats (root mean "
        "square) from those they were sampled with, so the update would use other data than the policy acted on. Likely "
        "causes: an environment or wrapper that writes into arrays it has returned; weights that have changed since; a custom "
        "rollout buffer or policy that modifies observations or actions, or draws random numbers; squashed actions at their "
        "bounds.",
        UserWarning,
        stacklevel=2,
    )


class AdvisingAlgorithm(OnPolicyAlgorithm):
    """An algorithm that counts the outcomes of its updates, and advises its user about unwanted ones."""

    _communicator: Communicator = ALONE

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._n_iterations = 0
        self._n_rejected_steps = 0
        self.policy_outcome: Outcome | None = None
        """How the last policy step ended."""
        self.critic_outcome: FitOutcome | None = None
        """How the last critic fit ended."""
        self._outcome_counts: dict[str, int] = {}
        self._advised: set[str] = set()

    def _count(self, outcome: Outcome | FitOutcome, name: str, description: str) -> None:
        """Count an outcome for the log. The first time that an unwanted one occurs, advise the user what to do about it."""
        self._outcome_counts[name] = self._outcome_counts.get(name, 0) + 1
        is_end = self._current_progress_remaining == 0.0 and self._n_iterations > 1
        if is_unwanted(outcome, is_end) and self._is_first_time(description):
            advise(outcome, f"{type(self).__name__}, update {self._n_updates + 1}: {description}", self.verbose)

    def _compare_log_probs(self, error: float) -> None:
        """Warn once if the rollout's log-probabilities are not those of the policy; the error is in nats, root mean square."""
        if error > MISMATCH and self._is_first_time("mismatch"):
            warn_about_mismatch(error)

    def _is_first_time(self, topic: str) -> bool:
        """Return whether to inform the user about a topic: the first time only, and on the first rank only."""
        is_new = topic not in self._advised
        self._advised.add(topic)
        return is_new and self._communicator.is_first
