"""
TRPO for policies with memory, alone and with action masks; needs the extra ``[contrib]``.

    from sb3_trpo.recurrent import MaskableRecurrentTRPO, RecurrentTRPO
    model = RecurrentTRPO("MlpLstmPolicy", "PendulumNoVel-v1")
    model.learn(1e6)
    action, state = model.predict(obs, state=state, episode_start=episode_start)
"""

from sb3_trpo.recurrent.buffers import MaskableRecurrentDictRolloutBuffer, MaskableRecurrentRolloutBuffer
from sb3_trpo.recurrent.evaluation import MaskableRecurrentEvalCallback
from sb3_trpo.recurrent.policies import (
    CnnLstmPolicy,
    MaskableCnnLstmPolicy,
    MaskableMlpLstmPolicy,
    MaskableMultiInputLstmPolicy,
    MaskableRecurrentActorCriticPolicy,
    MlpLstmPolicy,
    MultiInputLstmPolicy,
)
from sb3_trpo.recurrent.trpo import MaskableRecurrentTRPO, RecurrentTRPO

__all__ = [
    "CnnLstmPolicy",
    "MaskableCnnLstmPolicy",
    "MaskableMlpLstmPolicy",
    "MaskableMultiInputLstmPolicy",
    "MaskableRecurrentActorCriticPolicy",
    "MaskableRecurrentDictRolloutBuffer",
    "MaskableRecurrentEvalCallback",
    "MaskableRecurrentRolloutBuffer",
    "MaskableRecurrentTRPO",
    "MlpLstmPolicy",
    "MultiInputLstmPolicy",
    "RecurrentTRPO",
]
