"""A trust-region problem whose matrices are known."""

from dataclasses import dataclass, field

import torch as th
from helpers.operators import DenseOperator

from sb3_trpo.numerics.flat import flatten
from sb3_trpo.numerics.line_search import Candidate, Constraint
from sb3_trpo.numerics.trust_region import LocalModel


@dataclass
class Quadratic:
    """Surrogate ``1 + g.d`` and KL ``excess * d.F d / 2`` of the displacement d, over a matrix and a vector parameter."""

    fisher: th.Tensor
    g: th.Tensor
    excess: float = 1.0
    visited: list[th.Tensor] = field(default_factory=list)

    def __post_init__(self):
        self.parameters = [th.nn.Parameter(self.g.new_zeros(1, 2)), th.nn.Parameter(self.g.new_zeros(len(self.g) - 2))]

    @property
    def moved(self):
        return flatten(self.parameters).detach().clone()

    def evaluate(self) -> Candidate:
        d = self.moved
        self.visited.append(d)
        return Candidate(1.0 + float(self.g @ d), (float(0.5 * self.excess * d @ self.fisher @ d),))

    def model(self, target_kl=0.01, fisher=None, limits=()):
        fisher = DenseOperator(self.fisher) if fisher is None else fisher
        return LocalModel(self.parameters, 1.0, self.g, fisher, [Constraint("KL", target_kl)], self.evaluate, limits=limits)
