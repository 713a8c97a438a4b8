"""
TRPO under limits on costs: constrained policy optimization.

    from sb3_trpo.constrained import ConstrainedTRPO
    model = ConstrainedTRPO("MlpPolicy", env, cost_limits={"cost": 25.0})      # info["cost"] at every step
    model.learn(1e6)

``MaskableConstrainedTRPO`` takes action masks as well; it needs the extra ``[contrib]``.
"""

from typing import TYPE_CHECKING, Any

from sb3_trpo.constrained.trpo import ConstrainedTRPO

if TYPE_CHECKING:
    from sb3_trpo.constrained.maskable import MaskableConstrainedTRPO

__all__ = ["ConstrainedTRPO", "MaskableConstrainedTRPO"]


def __getattr__(name: str) -> Any:
    if name != "MaskableConstrainedTRPO":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from sb3_trpo.constrained.maskable import MaskableConstrainedTRPO

    return MaskableConstrainedTRPO
