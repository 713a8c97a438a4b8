"""TODO."""

from __future__ import annotations

from typing import Any

from sb3_trpo.distributions.kinds import ProductOfCategoricals
from sb3_trpo.extras import CONTRIB, needs
from sb3_trpo.numerics.gauss_newton import Outputs

with needs(*CONTRIB):
    pass


class ProductOfMaskableCategoricals(ProductOfCategoricals):
    """Independent choices, which sb3-contrib keeps under another name; bits are choices of two options."""

    def parameters(self, distribution: Any) -> Outputs:
        """Read the normalised log-probabilities of each choice, very low ones where it is masked."""
        return tuple(choice.logits for choice in distribution.distributions)
