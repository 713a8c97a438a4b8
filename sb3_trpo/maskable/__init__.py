"""
TRPO with action masks; needs the extra ``[contrib]``.

    from sb3_trpo.maskable import MaskableTRPO
    model = MaskableTRPO("MlpPolicy", env)      # env has a method action_masks(), or is wrapped in ActionMasker
    model.learn(1e6)                            # with MaskableEvalCallback
    model.predict(obs, action_masks=get_action_masks(env))
"""

from sb3_trpo.maskable.policies import CnnPolicy, MlpPolicy, MultiInputPolicy
from sb3_trpo.maskable.trpo import MaskableTRPO

__all__ = ["CnnPolicy", "MaskableTRPO", "MlpPolicy", "MultiInputPolicy"]
