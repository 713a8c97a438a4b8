"""Evaluation during training for policies with memory and action masks."""

from __future__ import annotations

from stable_baselines3.common.callbacks import EvalCallback

from sb3_trpo.maskable.collecting import SelfMaskingModel
from sb3_trpo.maskable.masks import require_masks


class MaskableRecurrentEvalCallback(EvalCallback):
    """
    SB3's ``EvalCallback`` with masks.

    sb3-contrib's ``MaskableEvalCallback`` has masks too, but does not carry the LSTM state from step to step.
    """

    def _init_callback(self) -> None:
        require_masks(self.eval_env)
        super()._init_callback()

    def _on_step(self) -> bool:
        model = self.model
        self.model = SelfMaskingModel(model, self.eval_env)  # type: ignore[assignment]  # evaluation asks it nothing else
        try:
            return super()._on_step()
        finally:
            self.model = model
