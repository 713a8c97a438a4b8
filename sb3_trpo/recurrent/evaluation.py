"""TODO."""

from __future__ import annotations

from stable_baselines3.common.callbacks import EvalCallback

from sb3_trpo.extras import CONTRIB, needs
from sb3_trpo.maskable.collecting import MaskedBy
from sb3_trpo.maskable.masks import require_masks

with needs(*CONTRIB):
    pass


class MaskableRecurrentEvalCallback(EvalCallback):
    """SB3's ``EvalCallback`` with masks. sb3-contrib's has masks too, but gives the policy no memory from step to step."""

    def _init_callback(self) -> None:
        require_masks(self.eval_env)
        super()._init_callback()

    def _on_step(self) -> bool:
        model = self.model
        self.model = MaskedBy(model, self.eval_env)  # type: ignore[assignment]  # for all that evaluation asks, it is the model
        try:
            return super()._on_step()
        finally:
            self.model = model
