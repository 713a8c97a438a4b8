"""Limits on costs together with action masks; needs the extra ``[contrib]``."""

from __future__ import annotations

from sb3_trpo.constrained.trpo import ConstrainedTRPO
from sb3_trpo.maskable.trpo import MaskableTRPO


class MaskableConstrainedTRPO(ConstrainedTRPO, MaskableTRPO):
    """
    Constrained policy optimization over the actions that the environment's masks allow.

    The notes on :class:`ConstrainedTRPO` and on :class:`~sb3_trpo.maskable.MaskableTRPO` both apply.
    """
