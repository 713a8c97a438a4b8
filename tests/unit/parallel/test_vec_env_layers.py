from helpers.envs import VECTOR, RandomEnv
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecMonitor, VecNormalize

from sb3_trpo.parallel.vec_env_layers import layers_of


def test_layers_come_outermost_first():
    base = DummyVecEnv([lambda: RandomEnv(VECTOR)])
    monitor = VecMonitor(base)
    normalize = VecNormalize(monitor)
    stack = VecFrameStack(normalize, 2)
    assert [*layers_of(stack)] == [stack, normalize, monitor, base]
    assert [*layers_of(base)] == [base]
