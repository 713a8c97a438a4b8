"""
A correction of the excess over a limit, so that limits hold on average although steps promise too much.

The step minimizes a surrogate on the transitions that it is computed from. It finds directions that happen to be cheap on
these, so of a decrease that it predicts only a part comes true, and the cost settles above its limit. The remedy is that of a
controller. What has been too much in the past is added to the excess, an integral term, and the
aim is below the limit by the noise of the estimates.

=====  ======================================================================
J      estimated cost of an episode
d      its limit
m, v   running mean and variance of J
I      integral of the violation, >= 0
=====  ======================================================================
"""

from __future__ import annotations

import math
from dataclasses import dataclass

RATE = 0.1
"""Weight of an update in the running moments and in the integral."""
DEVIATIONS = 2.0
"""Standard deviations of J by which the aim is below the limit."""
LARGEST_MARGIN = 0.5
"""Of the limit."""


@dataclass
class Feedback:
    """
    What is known about a cost.

    :param integral: I
    :param mean: m, ``None`` before the first estimate
    :param variance: v
    """

    integral: float = 0.0
    mean: float | None = None
    variance: float = 0.0

    def margin(self, limit: float) -> float:
        """
        Return by how much the aim is below the limit.

        :param limit: d
        :return: the margin, in the unit of the cost
        """
        return min(DEVIATIONS * math.sqrt(self.variance), LARGEST_MARGIN * abs(limit))

    def observe(self, estimate: float, limit: float, was_out_of_reach: bool) -> None:
        """
        Learn from a new estimate.

        :param estimate: J
        :param limit: d
        :param was_out_of_reach: whether the last step could not reach the limit: a larger integral would change nothing
        """
        difference = 0.0 if self.mean is None else estimate - self.mean
        self.mean = estimate if self.mean is None else self.mean + RATE * difference
        self.variance = (1.0 - RATE) * (self.variance + RATE * difference**2)
        error = estimate - limit + self.margin(limit)
        if error <= 0.0 or not was_out_of_reach:
            self.integral = max(0.0, self.integral + RATE * error)
        if estimate == limit == 0.0:  # the cost of counted events cannot go below the aim, where the integral would fade
            self.integral = 0.0

    def excess(self, estimate: float, limit: float) -> float:
        """
        Compute the excess that the next step has to make up for.

        :param estimate: J
        :param limit: d
        :return: c
        """
        aim = limit - self.margin(limit)
        error = estimate - aim
        # Below the aim the integral fades, so that a policy that has become too careful is not held there until it runs down.
        share = min(1.0, max(0.0, 1.0 + error / abs(aim))) if aim else float(error >= 0.0)
        return error + share * self.integral
