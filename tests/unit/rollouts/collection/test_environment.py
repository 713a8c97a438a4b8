"""A rollout keeps what the policy saw and did, however the environments reuse their arrays, in both loops."""

import copy
import warnings

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from helpers.envs import BOX_ACTION, VECTOR, BareVecEnv, RandomEnv
from helpers.rollouts import policy_for
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from torch import nn

from sb3_trpo import TRPO
from sb3_trpo.rollouts.plain_spaces import map_parts

SMALL = {"n_steps": 32, "batch_size": 64, "n_critic_updates": 1, "seed": 0, "device": "cpu"}
LOOPS = pytest.mark.parametrize("is_fast", [True, False], ids=["fast", "general"])


class Reusing(BareVecEnv):
    """Returns the same arrays at every step, as shared memory does, and notes what they held."""

    def __init__(self, observation_space: spaces.Space) -> None:
        super().__init__(2, observation_space, BOX_ACTION)
        self.random = np.random.default_rng(0)
        parts = observation_space.spaces if isinstance(observation_space, spaces.Dict) else {"": observation_space}
        self.arrays = {key: np.zeros((2, *part.shape), part.dtype) for key, part in parts.items()}
        self.rewards, self.dones = np.zeros(2, np.float32), np.zeros(2, bool)
        self.shown, self.given, self.ended = [], [], [[True, True]]

    def observe(self):
        for array in self.arrays.values():
            array[:] = self.random.uniform(-1.0, 1.0, array.shape)
        self.shown.append(copy.deepcopy(self.arrays))
        return self.arrays.get("", self.arrays)

    def reset(self):
        return self.observe()

    def step_wait(self):
        self.rewards[:] = self.random.uniform(-1.0, 1.0, 2)
        self.dones[:] = self.random.uniform(0.0, 1.0, 2) < 0.2
        self.given.append(self.rewards.copy())
        self.ended.append(self.dones.copy())
        return self.observe(), self.rewards, self.dones, [{}, {}]


def untrained(is_fast: bool, env, callback=None, **settings) -> TRPO:
    """Collect one rollout without an update."""
    model = TRPO(policy_for(is_fast, env.observation_space), env, **SMALL | settings)
    model.train = lambda: None
    return model.learn(model.n_steps * model.n_envs, callback=callback)


@LOOPS
@pytest.mark.parametrize("space", [VECTOR, spaces.Dict(far=BOX_ACTION, near=VECTOR)], ids=["vector", "dict"])
def test_an_environment_may_return_the_same_arrays_at_every_step(space, is_fast):
    env, seen = Reusing(space), []

    def look(variables, _):
        seen.append(map_parts(lambda part: part.numpy().copy(), variables["obs_tensor"]))
        return True

    buffer = untrained(is_fast, env, look).rollout_buffer
    for step in range(32):
        shown = env.shown[step].get("", env.shown[step])
        np.testing.assert_equal(map_parts(lambda rows, step=step: rows[step], buffer.observations), shown)
        np.testing.assert_equal(seen[step], shown)
    np.testing.assert_array_equal(buffer.rewards, env.given)
    np.testing.assert_array_equal(buffer.episode_starts, env.ended[:32])


class CutOff(BareVecEnv):
    """Gives a reward of 1 at each step, in any form; episodes are cut off by a time limit after two steps."""

    def __init__(self, form) -> None:
        super().__init__(2, VECTOR, BOX_ACTION)
        self.form, self.n_steps = form, 0

    def reset(self):
        return np.zeros((2, 3), np.float32)

    def step_wait(self):
        self.n_steps += 1
        is_over = self.n_steps % 2 == 0
        end = {"TimeLimit.truncated": True, "terminal_observation": np.zeros(3, np.float32)} if is_over else {}
        return self.reset(), self.form(np.ones(2)), np.full(2, is_over), [dict(end), dict(end)]


def frozen(array: np.ndarray) -> np.ndarray:
    array.setflags(write=False)
    return array


FORMS = {
    **{np.dtype(kind).name: lambda ones, kind=kind: ones.astype(kind) for kind in ("f2", "f4", "f8", "i1", "i8", "u1", "?")},
    "read-only": lambda ones: frozen(ones.astype(np.float32)),
    "read-only integers": lambda ones: frozen(ones.astype(np.int64)),
    "every other one": lambda ones: np.repeat(ones, 2).astype(np.float32)[::2],
    "backwards": lambda ones: ones.astype(np.float32)[::-1],
    "broadcast": lambda ones: np.broadcast_to(np.float32(1.0), 2),
}


@LOOPS
@pytest.mark.parametrize("form", FORMS)
def test_returns_do_not_depend_on_the_form_of_the_rewards(form, is_fast):
    """With a value of 0.6 everywhere, gamma 0.5 and lambda 1: by hand, from the last of four steps backwards."""
    settings = SMALL | {"n_steps": 4, "batch_size": 8}
    model = TRPO(policy_for(is_fast), CutOff(FORMS[form]), gamma=0.5, gae_lambda=1.0, **settings)
    nn.init.zeros_(model.policy.value_net.weight)
    nn.init.constant_(model.policy.value_net.bias, 0.6)
    model.train = lambda: None
    model.learn(8)
    at_limit = 1.0 + 0.5 * 0.6
    before = 1.0 + 0.5 * at_limit
    np.testing.assert_allclose(model.rollout_buffer.rewards[:, 0], [1.0, at_limit, 1.0, at_limit], rtol=1e-6)
    np.testing.assert_allclose(model.rollout_buffer.returns[:, 1], [before, at_limit, before, at_limit], rtol=1e-6)


NUMBERS = spaces.Box(0, 20, (3,), np.int64)
UNDER_A_KEY = spaces.Dict(count=NUMBERS, vector=VECTOR)


def log_prob_error(model: TRPO) -> float:
    """Compare the log-probabilities of the rollout with those stored, by the policy's own method."""
    batch = next(model.rollout_buffer.get())
    actions = batch.actions.long().flatten() if isinstance(model.action_space, spaces.Discrete) else batch.actions
    with th.no_grad():
        _, log_prob, _ = model.policy.evaluate_actions(batch.observations, actions)
    return float((log_prob - batch.old_log_prob).abs().max())


@LOOPS
@pytest.mark.parametrize("dtype", [np.int64, np.int8, np.uint8, np.float16, np.float64])
def test_actions_keep_the_probabilities_that_they_were_sampled_with(dtype, is_fast):
    assert log_prob_error(untrained(is_fast, RandomEnv(VECTOR, spaces.Box(0, 9, (2,), dtype)))) < 1e-5


@LOOPS
@pytest.mark.parametrize(("space", "keys"), [(NUMBERS, None), (UNDER_A_KEY, ["count"])], ids=["vector", "dict"])
def test_normalised_integers_are_kept_as_the_policy_saw_them(space, keys, is_fast):
    model = untrained(is_fast, VecNormalize(DummyVecEnv([lambda: RandomEnv(space)] * 2), norm_obs_keys=keys))
    observations = model.rollout_buffer.observations
    kept = observations["count"] if keys else observations
    assert kept.dtype == np.float32
    assert len(np.unique(kept)) > 100
    assert log_prob_error(model) < 1e-5


def test_integers_that_nobody_normalises_are_kept_as_integers():
    assert untrained(True, RandomEnv(NUMBERS)).rollout_buffer.observations.dtype == np.int64


class Resetting(BaseCallback):
    """Resets the environments in one of its methods, and ends training at step 70."""

    def __init__(self, when: str) -> None:
        super().__init__()
        setattr(self, when, self._reset)

    def _reset(self) -> None:
        self.model._last_obs = self.training_env.reset()

    def _on_step(self) -> bool:
        return self.n_calls < 70


@LOOPS
@pytest.mark.parametrize("when", ["_on_rollout_start", "_on_rollout_end"])
@pytest.mark.parametrize("space", [VECTOR, spaces.Discrete(4, start=5)], ids=["vector", "option"])
def test_a_callback_may_reset_the_environments(space, when, is_fast):
    model = TRPO(policy_for(is_fast), RandomEnv(space, BOX_ACTION), **SMALL | {"batch_size": 32})
    assert model.learn(128, callback=Resetting(when)).num_timesteps == 70


@LOOPS
def test_callbacks_see_what_the_environments_returned(is_fast):
    seen, ends = [], []

    def look(variables, _):
        seen.extend(variables["new_obs"])
        ends.extend(info["terminal_observation"] for info in variables["infos"] if "terminal_observation" in info)
        return True

    model = untrained(is_fast, RandomEnv(spaces.Discrete(4, start=5)), look)
    assert len(ends) > 2
    assert min(*seen, *ends, *model._last_obs) >= 5


class Target(RandomEnv):
    """Pays for actions that are near 3."""

    def step(self, action):
        observation, _, *rest = super().step(action)
        return observation, -abs(float(action[0]) - 3.0), *rest


def test_the_best_integer_action_is_learned():
    env = Target(VECTOR, spaces.Box(-10, 10, (1,), np.int64))
    model = TRPO("MlpPolicy", env, n_steps=512, batch_size=128, gamma=0.0, target_kl=0.05, seed=0, device="cpu")
    model.learn(512 * 30)
    action, _ = model.predict(np.zeros(3, np.float32), deterministic=True)
    assert action[0] == pytest.approx(3.0, abs=0.25)


class Rounding(RolloutBuffer):
    """Changes actions on the way."""

    def add(self, obs, action, *args):
        super().add(obs, np.round(action), *args)


@pytest.mark.parametrize("subsampling", [{}, {"sub_sampling_factor": 2}, {"chunk_size": 7}], ids=str)
def test_a_rollout_that_is_not_what_the_policy_did_is_reported_once(subsampling):
    model = TRPO("MlpPolicy", RandomEnv(VECTOR, BOX_ACTION), rollout_buffer_class=Rounding, **SMALL, **subsampling)
    with pytest.warns(UserWarning, match=r"log-probabilities that differ by 0\.\d+ nats") as caught:
        model.learn(32 * 4)
    assert len([each for each in caught if "log-probabilities" in str(each.message)]) == 1


def test_the_reported_difference_is_the_root_mean_square():
    model = TRPO("MlpPolicy", RandomEnv(VECTOR, BOX_ACTION), **SMALL)
    train = model.train

    def shifted() -> None:
        model.rollout_buffer.log_probs[::2] += 0.5
        train()

    model.train = shifted
    with pytest.warns(UserWarning, match=r"differ by 0\.35 nats"):  # sqrt(0.5 ** 2 / 2)
        model.learn(32)


@LOOPS
@pytest.mark.parametrize("use_sde", [False, True])
def test_an_ordinary_rollout_is_not_reported(is_fast, use_sde):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        TRPO(policy_for(is_fast), RandomEnv(VECTOR, BOX_ACTION), use_sde=use_sde, **SMALL | {"batch_size": 32}).learn(96)


@LOOPS
@pytest.mark.parametrize("activation_fn", [nn.SiLU, nn.ReLU, nn.Tanh])
@pytest.mark.parametrize("size", [1e2, 1e4, 1e8, 1e10, 1e15, 1e20])
def test_the_policy_that_acts_stays_within_its_trust_region_or_does_not_change(size, activation_fn, is_fast):
    """
    Observations may be unscaled numbers, such as prices; the standard deviation is 0.05.

    The joint KL is computed by torch's own formula, from the policy's modules.
    """
    env = RandomEnv(spaces.Box(-size, size, (16,)), spaces.Box(-1.0, 1.0, (5,)))
    kwargs = {"activation_fn": activation_fn, "log_std_init": -3.0}
    settings = {"n_steps": 256, "batch_size": 256, "n_critic_updates": 0}
    model = TRPO(policy_for(is_fast), env, policy_kwargs=kwargs, **SMALL | settings)
    train = model.train

    def distribution():
        with th.no_grad():
            found = model.policy.get_distribution(th.as_tensor(model.rollout_buffer.observations.reshape(-1, 16)))
        return th.distributions.Normal(found.distribution.mean.double(), found.distribution.stddev.double())

    def checked() -> None:
        old, before = distribution(), [parameter.clone() for parameter in model.policy.parameters()]
        train()
        kl = float(th.distributions.kl_divergence(old, distribution()).sum(1).mean())
        if model.policy_outcome.value == "accepted":
            assert kl <= 0.01 * 1.0001
            assert kl == pytest.approx(model.logger.name_to_value["train/kl_divergence_loss"], rel=1e-4)
        else:
            assert all(map(th.equal, before, model.policy.parameters()))

    model.train = checked
    is_lost = size >= 1e8 and activation_fn is not nn.Tanh  # which squashes any number
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.learn(256 * 4)
    assert (model.policy_outcome.value == "lost in rounding") == is_lost
    assert [str(each.message).count("VecNormalize") for each in caught] == [1] * is_lost
