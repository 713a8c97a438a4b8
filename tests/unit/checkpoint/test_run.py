"""A run that crashes and is made again ends where the uninterrupted one ends, to the last bit."""

import random
from functools import partial
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from helpers.envs import BOX_ACTION, RandomEnv, dict_env, image_env
from helpers.resumable_runs import INTERRUPTED, assert_resumes_exactly, small_model
from helpers.runs import CrashAt, CrashError, outcome, run_until_done, with_log
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CheckpointCallback,
    EvalCallback,
    EveryNTimesteps,
    StopTrainingOnMaxEpisodes,
    StopTrainingOnNoModelImprovement,
)
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import SubprocVecEnv, VecFrameStack, VecMonitor, VecNormalize

from sb3_trpo.checkpoint import ResumableCheckpoint
from sb3_trpo.checkpoint.run import explain_lost
from sb3_trpo.checkpoint.worker_rpc import CANNOT_BE_CALLED, call

# VecMonitor counts what a Monitor of make_vec_env() counts too; SB3 warns.
ALREADY_WRAPPED = pytest.mark.filterwarnings("ignore:The environment is already wrapped with a `Monitor`:UserWarning")
pytestmark = [ALREADY_WRAPPED, INTERRUPTED]

TOTAL, EVERY = 640, 64
WORKERS = {"vec_env_cls": SubprocVecEnv, "vec_env_kwargs": {"start_method": "fork"}}
"""Forked ones start sooner."""


def linear(progress_remaining: float) -> float:
    return 0.01 * progress_remaining


def normalized(env, **settings):
    return VecNormalize(make_vec_env(env, 2, seed=3), **settings)


CASES = {
    "CartPole": (partial(make_vec_env, "CartPole-v1", 2, seed=3), "MlpPolicy", {}),
    "gSDE": (partial(make_vec_env, "Pendulum-v1", 2, seed=3), "MlpPolicy", {"use_sde": True, "sde_sample_freq": 4}),
    "schedules": (partial(make_vec_env, "CartPole-v1", seed=3), "MlpPolicy", {"learning_rate": linear, "target_kl": linear}),
    "VecNormalize": (partial(normalized, "Hopper-v5"), "MlpPolicy", {}),
    "Dict": (partial(make_vec_env, dict_env, 2, seed=3), "MultiInputPolicy", {}),
    "stacked images": (lambda: VecFrameStack(make_vec_env(image_env, 2, seed=3), 3), "CnnPolicy", {}),
    "MultiDiscrete": (lambda: RandomEnv(action_space=spaces.MultiDiscrete([2, 3])), "MlpPolicy", {}),
    "MultiBinary": (lambda: RandomEnv(action_space=spaces.MultiBinary(3)), "MlpPolicy", {}),
    "VecMonitor": (lambda: VecMonitor(make_vec_env("Acrobot-v1", 2, seed=3)), "MlpPolicy", {}),
    "SGD": (lambda: RandomEnv(action_space=BOX_ACTION), "MlpPolicy", {"policy_kwargs": {"optimizer_class": th.optim.SGD}}),
    "workers": (partial(make_vec_env, "Hopper-v5", 2, seed=3, **WORKERS), "MlpPolicy", {}),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_an_interrupted_run_ends_like_an_uninterrupted_one(name, tmp_path):
    make_env, policy, settings = CASES[name]

    def script(folder, crash):
        model = with_log(small_model(make_env(), policy, **settings), folder / "log")
        try:
            resumable = ResumableCheckpoint(folder / "run", every=EVERY, verbose=0)
            model.learn(TOTAL, callback=[resumable, crash], log_interval=3)
            return outcome(model, None, folder / "log")
        finally:
            model.env.close()

    whole = assert_resumes_exactly(script, tmp_path, 100, 290, 300, 555)
    assert len(whole["rows"]) == TOTAL // (32 * len(whole["starts"])) // 3


def test_callbacks_continue_where_they_were(tmp_path):
    def script(folder, crash):
        model = with_log(small_model(normalized("Hopper-v5")), folder / "log")
        evaluation = EvalCallback(
            normalized("Hopper-v5", training=False, norm_reward=False),
            callback_after_eval=StopTrainingOnNoModelImprovement(max_no_improvement_evals=100, min_evals=1),
            eval_freq=45,
            n_eval_episodes=2,
            log_path=str(folder / "evaluations"),
            best_model_save_path=str(folder / "best"),
            deterministic=False,
            verbose=0,
        )
        saving = EveryNTimesteps(150, CheckpointCallback(1, str(folder / "models")))
        episodes = StopTrainingOnMaxEpisodes(1000)
        callbacks = [evaluation, saving, episodes]
        model.learn(TOTAL, callback=[*callbacks, ResumableCheckpoint(folder / "run", every=EVERY, verbose=0), crash])
        evaluations = np.load(folder / "evaluations" / "evaluations.npz")
        return outcome(model, callbacks, folder / "log"), evaluations["results"].tolist()

    _, results = assert_resumes_exactly(script, tmp_path, 130, 333, 500)
    assert len(results) == TOTAL // 2 // 45
    models = [sorted(path.name for path in (tmp_path / run / "models").iterdir()) for run in ("whole", "pieces")]
    assert models[0] == models[1]
    assert len(models[0]) == TOTAL // 150


def test_a_run_with_checkpoints_is_the_run_without(tmp_path):
    def train(*callbacks):
        return outcome(small_model(normalized("Hopper-v5")).learn(TOTAL, callback=[*callbacks]), None)

    assert train(ResumableCheckpoint(tmp_path, every=1)) == train()


def test_an_unseeded_run_continues_too(tmp_path):
    """Generators that no seed determines are in the checkpoint: two continuations of one checkpoint are the same."""

    def script(crash):
        model = small_model(make_vec_env("CartPole-v1", 2), seed=None)
        model.learn(TOTAL, callback=[ResumableCheckpoint(tmp_path / "run", every=EVERY, keep=99, verbose=0), crash])
        return outcome(model, None)

    one, _ = run_until_done(script, 300)
    for path in (tmp_path / "run").glob("checkpoint-*"):
        if int(path.name.removeprefix("checkpoint-")) > 320:
            path.rename(tmp_path / path.name)
    other, _ = run_until_done(script)
    assert one == other


class Counting(BaseCallback):
    steps = 0

    def _on_step(self) -> bool:
        self.steps += 1
        return True


def test_a_finished_run_is_restored_without_a_step_and_extended_by_a_longer_total(tmp_path):
    models, counters = [small_model() for _ in range(3)], [Counting() for _ in range(3)]
    for model, counter, total in zip(models, counters, (TOTAL, TOTAL, 2 * TOTAL), strict=True):
        model.learn(total, callback=[counter, ResumableCheckpoint(tmp_path, verbose=0)])
    assert [counter.steps for counter in counters] == [TOTAL, TOTAL, 2 * TOTAL], "restored, and no step too many"
    assert outcome(models[1], None) == outcome(models[0], None)
    assert outcome(models[2], None) == outcome(small_model().learn(2 * TOTAL), None)


def test_a_callback_that_ends_the_run_ends_it_at_the_same_step_again(tmp_path):
    def script(folder, crash):
        model, episodes = small_model(), StopTrainingOnMaxEpisodes(5)
        model.learn(TOTAL, callback=[episodes, ResumableCheckpoint(folder, every=EVERY, verbose=0), crash])
        return outcome(model, [episodes])

    assert 0 < assert_resumes_exactly(script, tmp_path, 40, 90)["num_timesteps"] < TOTAL


def test_the_progress_bar_counts_what_is_left(tmp_path, monkeypatch):
    from stable_baselines3.common import callbacks

    totals = []

    class Bar:
        def __init__(self, total):
            totals.append(total)

        update = refresh = close = lambda self, *_: None

    monkeypatch.setattr(callbacks, "tqdm", Bar)
    for total in (TOTAL, 2 * TOTAL):
        small_model().learn(total, callback=ResumableCheckpoint(tmp_path, verbose=0), progress_bar=True)
    assert totals == [TOTAL, TOTAL]


class Uncooperative(gym.Env):
    """An env whose state lies in an object that cannot be looked into."""

    observation_space = spaces.Box(-1.0, 1.0, (2,))
    action_space = spaces.Discrete(2)

    def __init__(self):
        self.steps = iter(())

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = iter(range(20))
        return self.np_random.uniform(-1, 1, 2).astype(np.float32), {}

    def step(self, action):
        is_over = next(self.steps, None) is None
        return self.np_random.uniform(-1, 1, 2).astype(np.float32), float(action), is_over, False, {}


@pytest.mark.parametrize("make_env", [Uncooperative, partial(gym.make, "BipedalWalker-v3")], ids=["iterator", "Box2D"])
def test_an_unsupported_simulator_restarts_its_episodes_from_a_recorded_seed(make_env, tmp_path):
    def script(folder, crash):
        env = VecNormalize(make_vec_env(make_env, 2, seed=3))
        model = small_model(env)
        watch = WatchStarts()
        with pytest.warns(UserWarning, match="cannot be saved") as warned:
            model.learn(TOTAL, callback=[ResumableCheckpoint(folder, every=EVERY, verbose=0), watch, crash])
        assert sum("cannot be saved" in str(each.message) for each in warned) == 1
        return model, watch.starts

    (model, starts), n_starts = run_until_done(partial(script, tmp_path / "run"), 200)
    assert n_starts == 2
    assert starts[192 // 2].all(), "both episodes are new at the first step after the checkpoint"
    (again, _), _ = run_until_done(partial(script, tmp_path / "again"), 200)
    assert outcome(again, None) == outcome(model, None), "the seed of the new episodes is in the checkpoint"
    assert model.env.obs_rms.count == pytest.approx(2 + TOTAL + 1e-4), "statistics are those of the steps, and of one reset"
    monitors = model.env.get_attr("total_steps")
    assert monitors == [TOTAL // 2] * 2, "what Monitor has counted stays"


@pytest.mark.parametrize(
    ("path", "name", "reason"),
    [
        ("env/venv/0/env/sim/parts/3", "a.B", "its attribute 'sim', with a a.B, is out of reach"),
        ("env/0/env/env", "a.SlottedEnv", "a a.SlottedEnv is out of reach"),
        ("env/0", CANNOT_BE_CALLED, "the env is a bare env in a worker process; wrapped in SB3's Monitor, "),
    ],
)
def test_a_simulator_that_is_lost_is_named_even_if_it_is_the_env_itself(path, name, reason):
    assert explain_lost({path: name}).startswith(f"The simulator's state cannot be saved: {reason}")


class WatchStarts(BaseCallback):
    """Note which episodes are new at each step."""

    def __init__(self):
        super().__init__()
        self.starts = []

    def _on_step(self) -> bool:
        self.starts.append(self.model._last_episode_starts.copy())
        return True


class GlobalDice(RandomEnv):
    """Draws from the generators of its process."""

    def step(self, action):
        observation, _, *rest = super().step(action)
        return observation, random.random() + float(np.random.normal()) + float(th.rand(())), *rest


def test_the_generators_of_workers_continue_too(tmp_path):
    def script(folder, crash):
        model = small_model(make_vec_env(GlobalDice, 2, seed=3, **WORKERS))
        for index in range(2):
            call(model.env, index, seed_process)
        try:
            model.learn(TOTAL, callback=[ResumableCheckpoint(folder, every=EVERY, verbose=0), crash])
            return outcome(model, None)
        finally:
            model.env.close()

    assert_resumes_exactly(script, tmp_path, 300)


def seed_process(env):
    """Seed a worker as its env's constructor might."""
    random.seed(0)
    np.random.seed(0)
    th.manual_seed(0)


def test_tensorboard_events_of_another_run_stay(tmp_path):
    def script(crash):
        model = small_model(tensorboard_log=str(tmp_path / "log"))
        resumable = ResumableCheckpoint(tmp_path / "run", every=EVERY, verbose=0)
        model.learn(TOTAL, callback=[resumable, crash], reset_num_timesteps=False)

    with pytest.raises(CrashError):
        script(CrashAt(300))
    other = small_model(tensorboard_log=str(tmp_path / "log")).learn(64)
    (events,) = (Path(other.logger.dir)).glob("events*")
    before = events.read_bytes()
    script(CrashAt())
    assert events.read_bytes() == before
