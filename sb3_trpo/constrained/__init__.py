"""
TRPO under limits on costs: constrained policy optimization.

    from sb3_trpo.constrained import ConstrainedTRPO
    model = ConstrainedTRPO("MlpPolicy", env, cost_limits={"cost": 25.0})      # info["cost"] at every step
    model.learn(1e6)
"""

from sb3_trpo.constrained.trpo import ConstrainedTRPO

__all__ = ["ConstrainedTRPO"]
