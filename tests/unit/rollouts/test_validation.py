"""What the update is given is checked: bad numbers are found, named and placed, and nothing has been changed."""

import io
import re
from functools import partial

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from helpers.buffers import N_ENVS, N_STEPS, filled
from helpers.envs import BOX_ACTION, DICT, IMAGE, VECTOR, RandomEnv
from helpers.rollouts import ACTIONS, policy_for
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_trpo import TRPO
from sb3_trpo.rollouts.validation import require_finite

PAIR = spaces.Dict(far=spaces.Box(-1.0, 1.0, (2,)), near=spaces.Box(-1.0, 1.0, (3,)))
NAN, INF = float("nan"), float("inf")


class Faulty(gym.Env):
    """Runs without end and gives one bad number, in the observation that the policy sees at step ``when`` or in its reward."""

    def __init__(self, when, what, bad, observation_space, action_space):
        self.observation_space, self.action_space = observation_space, action_space
        self.when, self.what, self.bad, self.now = when, what, bad, 0

    def reset(self, *, seed=None, options=None):
        self.observation_space.seed(0)
        return self.observe(), {}

    def step(self, action):
        reward = self.bad if self.what == "rewards" and self.now == self.when else 1.0
        self.now += 1
        return self.observe(), reward, False, False, {}

    def observe(self):
        observation = self.observation_space.sample()
        if self.now == self.when and self.what.startswith("observations"):
            part = observation["near"] if isinstance(observation, dict) else observation
            part[-1] = self.bad
        return observation


def model_with_fault(env, step, what, bad, space=VECTOR, action_space=BOX_ACTION) -> TRPO:
    """Have environment ``env`` of three give the bad number at step ``step`` since the beginning."""
    steps = [step if index == env else None for index in range(N_ENVS)]
    envs = DummyVecEnv([partial(Faulty, when, what, bad, space, action_space) for when in steps])
    return TRPO(policy_for(True, space), envs, n_steps=N_STEPS, batch_size=N_STEPS * N_ENVS, seed=0, device="cpu")


def parameters(model: TRPO) -> list[th.Tensor]:
    return [value.detach().clone() for value in model.policy.parameters()]


def learn_refused(model: TRPO, total_timesteps: int) -> str:
    """Learn until refused; check that nothing was harmed and give the message."""
    before = [parameters(model)]
    train = model.train
    model.train = lambda: (train(), before.append(parameters(model)))
    with pytest.raises(ValueError, match="non-finite") as refusal:
        model.learn(total_timesteps)
    del model.train
    assert type(refusal.value) is ValueError
    assert refusal.value.__cause__ is None
    assert refusal.value.__suppress_context__ or refusal.value.__context__ is None
    assert all(map(th.equal, before[-1], parameters(model)))
    file = io.BytesIO()
    model.save(file)
    assert all(map(th.equal, before[-1], parameters(TRPO.load(file))))
    return str(refusal.value)


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
@pytest.mark.parametrize(("env", "step"), [(0, 0), (1, 3), (2, 5)])
@pytest.mark.parametrize("what", ["observations", "rewards"])
@pytest.mark.parametrize("action_space", [spaces.Discrete(3), BOX_ACTION], ids=["discrete", "continuous"])
def test_a_bad_number_from_an_environment_is_named_and_placed(what, env, step, bad, action_space):
    message = learn_refused(model_with_fault(env, step, what, bad, action_space=action_space), N_STEPS * N_ENVS)
    assert f"non-finite {what}: {bad} in environment {env} at step {step} of the rollout" in message


@pytest.mark.parametrize("action_space", ACTIONS.values(), ids=ACTIONS)
@pytest.mark.parametrize(("space", "name"), [(VECTOR, "observations"), (PAIR, "observations['near']")], ids=["vector", "dict"])
def test_a_bad_observation_is_named_whatever_the_spaces(space, name, action_space):
    model = model_with_fault(2, 4, "observations", NAN, space, action_space)
    message = learn_refused(model, N_STEPS * N_ENVS)
    assert f"non-finite {name}: nan in environment 2 at step 4 of the rollout" in message


@pytest.mark.parametrize(("what", "step"), [("observations", 1), ("observations", 5), ("rewards", 0), ("rewards", 5)])
def test_the_step_counts_from_the_rollout_and_earlier_updates_stand(what, step):
    model = model_with_fault(1, N_STEPS + step, what, NAN)
    message = learn_refused(model, 3 * N_STEPS * N_ENVS)
    assert f"non-finite {what}: nan in environment 1 at step {step} of the rollout" in message
    assert model._n_updates == 1


@pytest.mark.parametrize("bad", [NAN, INF])
@pytest.mark.parametrize("action_space", [spaces.Discrete(3), BOX_ACTION], ids=["discrete", "continuous"])
def test_a_bad_observation_after_the_last_step_is_called_an_observation(bad, action_space):
    """The returns are bootstrapped from its value, which spoils all of them: none of those is the cause."""
    message = learn_refused(model_with_fault(1, N_STEPS, "observations", bad, action_space=action_space), 2 * N_STEPS * N_ENVS)
    assert f"non-finite observations: {bad} in environment 1" in message


def test_an_error_that_is_not_about_observations_passes_unchanged():
    model = model_with_fault(0, None, "rewards", NAN)

    def fail(observation):
        raise RuntimeError("out of memory")

    model.policy.forward = fail
    with pytest.raises(RuntimeError, match="out of memory"):
        model.learn(N_STEPS * N_ENVS)


@pytest.mark.parametrize("read_before", [False, True], ids=["fresh", "read"])
@pytest.mark.parametrize("name", ["observations", "observations['near']", "rewards", "values", "returns", "advantages"])
@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_every_quantity_is_checked_and_placed_before_and_after_the_buffer_was_read(name, bad, read_before):
    is_dict = name.endswith("]")
    buffer = filled(PAIR if is_dict else VECTOR)
    require_finite(buffer)
    array = buffer.observations["near"] if is_dict else getattr(buffer, name)
    array[4, 2] = bad
    if read_before:
        next(buffer.get())
    with pytest.raises(ValueError, match=rf"non-finite {re.escape(name)}: {bad} in environment 2 at step 4 of the rollout"):
        require_finite(buffer)


@pytest.mark.parametrize("name", ["values", "returns", "advantages"])
def test_an_update_on_a_bad_buffer_changes_nothing(name):
    model = TRPO("MlpPolicy", DummyVecEnv([RandomEnv] * N_ENVS), n_steps=N_STEPS, batch_size=N_STEPS * N_ENVS, seed=0)
    collected = model.collect_rollouts

    def spoil(*args, **kwargs):
        complete = collected(*args, **kwargs)
        getattr(model.rollout_buffer, name)[3, 1] = NAN
        return complete

    model.collect_rollouts = spoil
    before = parameters(model)
    with pytest.raises(ValueError, match=rf"non-finite {name}: nan in environment 1 at step 3 "):
        model.learn(N_STEPS * N_ENVS)
    assert all(map(th.equal, before, parameters(model)))


def test_rewards_whose_sum_overflows_are_found_in_the_returns():
    envs = DummyVecEnv([lambda: RandomEnv(action_space=spaces.MultiBinary(2), reward_scale=3e38)] * N_ENVS)
    model = TRPO("MlpPolicy", envs, n_steps=N_STEPS, batch_size=N_STEPS * N_ENVS, seed=0, gae_lambda=1.0, gamma=1.0)
    with np.errstate(over="ignore"):
        assert "non-finite returns: inf" in learn_refused(model, N_STEPS * N_ENVS)


@pytest.mark.parametrize("space", [IMAGE, DICT], ids=["image", "dict"])
def test_integer_observations_are_fine(space):
    require_finite(filled(space))
