"""The rollout as data: bad numbers are found and placed, chunks hold what the buffer holds."""

import io

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from helpers.envs import BOX_ACTION, DICT, IMAGE, VECTOR, RandomEnv
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_trpo import TRPO
from sb3_trpo.rollouts.advantages import standardisation
from sb3_trpo.rollouts.reader import TransitionReader
from sb3_trpo.rollouts.transitions import GRAPH_LIMITS, default_chunk_size
from sb3_trpo.rollouts.validation import require_finite

N_ENVS, N_STEPS = 3, 6
PAIR = spaces.Dict(far=spaces.Box(-1.0, 1.0, (2,)), near=spaces.Box(-1.0, 1.0, (3,)))
NAN, INF = float("nan"), float("inf")


class Faulty(gym.Env):
    """Runs without end and gives one bad number, in the observation that the policy sees at step ``when`` or in its reward."""

    def __init__(self, when, what, bad, observation_space=VECTOR, action_space=None):
        self.observation_space, self.action_space = observation_space, action_space or spaces.Discrete(3)
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


def model_with_fault(env, step, what, bad, **spaces_of_env) -> TRPO:
    """Have environment ``env`` of three give the bad number at step ``step`` since the beginning."""
    envs = DummyVecEnv([lambda i=i: Faulty(step if i == env else None, what, bad, **spaces_of_env) for i in range(N_ENVS)])
    kind = "MultiInputPolicy" if isinstance(envs.observation_space, spaces.Dict) else "MlpPolicy"
    return TRPO(kind, envs, n_steps=N_STEPS, batch_size=N_STEPS * N_ENVS, seed=0, device="cpu")


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


CONTINUOUS = {"action_space": BOX_ACTION}


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
@pytest.mark.parametrize(("env", "step"), [(0, 0), (1, 3), (2, 5)])
@pytest.mark.parametrize("what", ["observations", "rewards"])
@pytest.mark.parametrize("action", [{}, CONTINUOUS], ids=["discrete", "continuous"])
def test_a_bad_number_from_an_environment_is_named_and_placed(what, env, step, bad, action):
    message = learn_refused(model_with_fault(env, step, what, bad, **action), N_STEPS * N_ENVS)
    assert f"non-finite {what}: {bad} in environment {env} at step {step} of the rollout" in message


@pytest.mark.parametrize("bad", [NAN, INF])
@pytest.mark.parametrize(("env", "step"), [(0, 0), (2, 4)])
def test_a_bad_number_under_a_key_is_named_by_the_key(env, step, bad):
    model = model_with_fault(env, step, "observations", bad, observation_space=PAIR)
    message = learn_refused(model, N_STEPS * N_ENVS)
    assert f"non-finite observations['near']: {bad} in environment {env} at step {step} of the rollout" in message


@pytest.mark.parametrize(("what", "step"), [("observations", 1), ("observations", 5), ("rewards", 0), ("rewards", 5)])
def test_the_step_counts_from_the_rollout_and_earlier_updates_stand(what, step):
    model = model_with_fault(1, N_STEPS + step, what, NAN)
    message = learn_refused(model, 3 * N_STEPS * N_ENVS)
    assert f"non-finite {what}: nan in environment 1 at step {step} of the rollout" in message
    assert model._n_updates == 1


@pytest.mark.parametrize("bad", [NAN, INF])
@pytest.mark.parametrize("action", [{}, CONTINUOUS], ids=["discrete", "continuous"])
def test_a_bad_observation_after_the_last_step_is_called_an_observation(bad, action):
    """The returns are bootstrapped from its value, which spoils all of them: none of those is the cause."""
    model = model_with_fault(1, N_STEPS, "observations", bad, **action)
    message = learn_refused(model, 2 * N_STEPS * N_ENVS)
    assert f"non-finite observations: {bad} in environment 1" in message


def test_an_error_that_is_not_about_observations_passes_unchanged():
    model = model_with_fault(0, None, "rewards", NAN)

    def fail(observation):
        raise RuntimeError("out of memory")

    model.policy.forward = fail
    with pytest.raises(RuntimeError, match="out of memory"):
        model.learn(N_STEPS * N_ENVS)


def filled(observation_space=VECTOR, action_space=None, n_steps=N_STEPS, n_envs=N_ENVS) -> RolloutBuffer:
    """Make a full buffer in which every number is another one."""
    action_space = action_space or spaces.Discrete(3)
    cls = DictRolloutBuffer if isinstance(observation_space, spaces.Dict) else RolloutBuffer
    buffer = cls(n_steps, observation_space, action_space, device="cpu", n_envs=n_envs)
    rng = np.random.default_rng(0)

    def some(space):
        if isinstance(space, spaces.Dict):
            return {key: some(part) for key, part in space.items()}
        return np.stack([space.sample() for _ in range(n_envs)])

    for space in (observation_space, action_space):
        space.seed(0)
    for _ in range(n_steps):
        value, log_prob = (th.as_tensor(rng.standard_normal(n_envs)) for _ in range(2))
        buffer.add(some(observation_space), some(action_space), rng.standard_normal(n_envs), np.zeros(n_envs), value, log_prob)
    buffer.compute_returns_and_advantage(value, np.zeros(n_envs))
    return buffer


@pytest.mark.parametrize("read_before", [False, True], ids=["fresh", "read"])
@pytest.mark.parametrize("name", ["observations", "rewards", "values", "returns", "advantages"])
@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_every_quantity_is_checked_and_placed_before_and_after_the_buffer_was_read(name, bad, read_before):
    buffer = filled()
    require_finite(buffer)
    getattr(buffer, name)[4, 2] = bad
    if read_before:
        next(buffer.get())
    with pytest.raises(ValueError, match=rf"non-finite {name}: {bad} in environment 2 at step 4 of the rollout"):
        require_finite(buffer)


@pytest.mark.parametrize("read_before", [False, True], ids=["fresh", "read"])
def test_dict_observations_are_checked_by_key(read_before):
    buffer = filled(PAIR)
    require_finite(buffer)
    buffer.observations["near"][1, 2, 0] = NAN
    if read_before:
        next(buffer.get())
    with pytest.raises(ValueError, match=r"non-finite observations\['near'\]: nan in environment 2 at step 1 "):
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


SPACES = {
    "discrete": (VECTOR, spaces.Discrete(3)),
    "continuous": (VECTOR, BOX_ACTION),
    "bits": (VECTOR, spaces.MultiBinary(2)),
    "choices": (VECTOR, spaces.MultiDiscrete([2, 3])),
    "image": (IMAGE, spaces.Discrete(3)),
    "dict": (DICT, BOX_ACTION),
    "number": (spaces.Discrete(5), spaces.Discrete(3)),
}


@pytest.mark.parametrize("read_before", [False, True], ids=["fresh", "read"])
@pytest.mark.parametrize("chunk_size", [1, 4, 7, 18, 100])
@pytest.mark.parametrize("every", [1, 2, 5])
@pytest.mark.parametrize(("observation_space", "action_space"), SPACES.values(), ids=SPACES)
def test_the_chunks_joined_are_every_kth_transition_environment_by_environment(
    observation_space, action_space, every, chunk_size, read_before
):
    buffer = filled(observation_space, action_space)

    def joined(array):
        return th.as_tensor(np.concatenate([array[:, env] for env in range(N_ENVS)])[::every])

    observations = buffer.observations
    if isinstance(observations, dict):
        observations = {key: joined(part) for key, part in observations.items()}
    else:
        observations = {"all": joined(observations)}
    actions, log_probs, advantages = (joined(array) for array in (buffer.actions, buffer.log_probs, buffer.advantages))
    if read_before:
        next(buffer.get())

    read = list(TransitionReader(buffer).chunks(every, chunk_size))
    n = len(actions)
    assert n == -(-N_STEPS * N_ENVS // every)
    assert [len(chunk.actions) for chunk in read] == [chunk_size] * (n // chunk_size) + [n % chunk_size] * (n % chunk_size > 0)
    for key, part in observations.items():
        seen = [chunk.inputs.observations for chunk in read]
        seen = [part[key] if isinstance(part, dict) else part for part in seen]
        assert th.equal(th.cat(seen), part)
    assert th.equal(
        th.cat([chunk.actions for chunk in read]), actions[:, 0] if action_space == spaces.Discrete(3) else actions
    )
    assert th.equal(th.cat([chunk.old_log_prob for chunk in read]), log_probs)
    assert th.equal(th.cat([chunk.advantages for chunk in read]), advantages)


def standardised(buffer, every, size):
    reader = TransitionReader(buffer)
    chunks = reader.chunks(every, size)
    return chunks.with_advantages(*standardisation(chunks.advantages, reader.returns))


def test_discrete_actions_are_indices():
    (chunk,) = TransitionReader(filled()).chunks(1, 100)
    assert chunk.actions.dtype == th.long
    assert chunk.actions.shape == (N_STEPS * N_ENVS,)


def test_chunks_can_be_read_again_and_stay_the_same():
    chunks = standardised(filled(), 1, 5)
    first, again = ([chunk.advantages for chunk in chunks] for _ in range(2))
    assert all(map(th.equal, first, again))


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
@pytest.mark.parametrize("shift", [0.0, -3.0])
@pytest.mark.parametrize(("every", "chunk_size"), [(1, 100), (1, 5), (4, 2)])
def test_normalised_advantages_have_mean_0_and_standard_deviation_1_over_what_is_read(every, chunk_size, scale, shift):
    buffer = filled()
    buffer.advantages = (scale * (buffer.advantages + shift)).astype(np.float32)
    buffer.returns = buffer.advantages + scale * buffer.values
    chunks = standardised(buffer, every, chunk_size)
    advantages = th.cat([chunk.advantages for chunk in chunks]).double()
    assert float(advantages.mean()) == pytest.approx(0.0, abs=1e-5)
    assert float(advantages.std()) == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("level", [0.0, 1.0, -250.0, 1e6])
@pytest.mark.parametrize("chunk_size", [4, 100])
def test_advantages_that_differ_by_rounding_only_weigh_nothing(level, chunk_size):
    buffer = filled()
    last_digits = (
        np.float32(level) * np.finfo(np.float32).eps * np.random.default_rng(0).integers(-2, 3, buffer.advantages.shape)
    )
    buffer.advantages = (np.float32(level) + last_digits).astype(np.float32)
    buffer.returns = np.full_like(buffer.advantages, level)
    chunks = standardised(buffer, 1, chunk_size)
    assert all(not chunk.advantages.any() for chunk in chunks)


def test_an_environment_that_always_pays_the_same_moves_no_policy():
    envs = DummyVecEnv([lambda: RandomEnv(reward_scale=0.0)] * N_ENVS)
    model = TRPO("MlpPolicy", envs, n_steps=N_STEPS, batch_size=N_STEPS * N_ENVS, gae_lambda=1.0, gamma=1.0, seed=0)
    with th.no_grad():
        for parameter in model.policy.value_net.parameters():
            parameter.zero_()
    before = [value.detach().clone() for value in model.policy.action_net.parameters()]
    model.learn(N_STEPS * N_ENVS)
    assert model.policy_outcome.value == "zero gradient"
    assert all(map(th.equal, before, model.policy.action_net.parameters()))


@pytest.mark.parametrize(
    ("space", "size"),
    [
        (spaces.Box(0, 255, (84, 84, 4), np.uint8), GRAPH_LIMITS.entries // (84 * 84 * 4)),
        (spaces.Box(0, 255, (5000, 5000, 3), np.uint8), 1),
        (spaces.Box(-1.0, 1.0, (3,)), GRAPH_LIMITS.transitions),
        (spaces.Box(-1.0, 1.0, (2**12,)), GRAPH_LIMITS.entries // 2**12),
        (spaces.Discrete(7), GRAPH_LIMITS.transitions),
        (spaces.Dict(image=spaces.Box(0, 255, (64, 64, 1), np.uint8), vector=VECTOR), GRAPH_LIMITS.entries // (64 * 64 + 3)),
    ],
    ids=["atari", "huge", "vector", "long vector", "number", "dict"],
)
def test_the_default_chunk_is_as_large_as_memory_allows(space, size):
    assert default_chunk_size(space, GRAPH_LIMITS) == size
    assert 1 <= size <= GRAPH_LIMITS.transitions
