"""Evaluation of policies with memory and masks: the model acts within the masks, and is itself again afterwards."""

import pytest
from helpers.envs import RandomEnv
from helpers.recurrent_tools import RestlessEnv, small_model
from stable_baselines3.common.monitor import Monitor

from sb3_trpo.maskable.collecting import SelfMaskingModel
from sb3_trpo.recurrent import MaskableRecurrentEvalCallback, MaskableRecurrentTRPO


class Watched(RestlessEnv):
    """Notes what the callback's model is during evaluation, and breaks at a chosen step."""

    def __init__(self, breaks_at=None):
        super().__init__()
        self.models, self.breaks_at = [], breaks_at

    def step(self, action):
        self.models.append(self.callback.model)
        if len(self.models) == self.breaks_at:
            raise OSError("the simulator is gone")
        return super().step(action)


def evaluation_on(env):
    callback = MaskableRecurrentEvalCallback(Monitor(env), eval_freq=12, n_eval_episodes=2, verbose=0, warn=False)
    env.callback = callback
    return callback


def test_only_evaluation_sees_a_model_that_masks_itself():
    env, model = Watched(), small_model(MaskableRecurrentTRPO)
    callback = evaluation_on(env)
    model.learn(48, callback)
    assert callback.model is model
    assert {type(each) for each in env.models} == {SelfMaskingModel}
    assert env.n_forbidden == 0


def test_the_model_is_itself_again_when_an_evaluation_breaks():
    env, model = Watched(breaks_at=5), small_model(MaskableRecurrentTRPO)
    callback = evaluation_on(env)
    with pytest.raises(OSError, match="the simulator is gone"):
        model.learn(48, callback)
    assert callback.model is model


def test_an_environment_without_masks_is_refused_before_training():
    model = small_model(MaskableRecurrentTRPO)
    with pytest.raises(ValueError, match=r"no method action_masks\(\)"):
        model.learn(48, MaskableRecurrentEvalCallback(Monitor(RandomEnv()), eval_freq=12))
    assert model.num_timesteps == 0
