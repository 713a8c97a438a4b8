import hashlib
import warnings
from functools import partial

import numpy as np
import pytest
import torch as th
from gymnasium.envs.classic_control import PendulumEnv
from helpers.envs import BOX_ACTION, VECTOR, RandomEnv
from helpers.ranks import in_ranks, in_threads
from stable_baselines3.common.callbacks import BaseCallback, ConvertCallback, EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import configure
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecNormalize

from sb3_trpo import TRPO
from sb3_trpo.parallel.communicator import ALONE
from sb3_trpo.parallel.faults import RanksPartedError
from sb3_trpo.parallel.rollout_sync import NoSync, RolloutSync, interleave, make_rollout_sync
from sb3_trpo.parallel.running_statistics import Moments, added, merge, moments_of, statistics_of


class Own(BaseCallback):
    """One of the user's."""

    def _on_step(self) -> bool:
        return True


class Stop(Own):
    """Ends the run early."""

    def _on_step(self) -> bool:
        return self.n_calls < 5


class AtRolloutEnd(Own):
    """Calls a function with the model after each rollout."""

    def __init__(self, act):
        super().__init__()
        self.act = act

    def _on_rollout_end(self) -> None:
        self.act(self.model)


class SometimesSuccessful(RandomEnv):
    """Reports success at the end of episodes with a positive last reward."""

    def step(self, action):
        observation, reward, terminated, truncated, info = super().step(action)
        return observation, reward, terminated, truncated, {**info, "is_success": reward > 0.0}


def pendulum_model(**settings):
    return TRPO("MlpPolicy", PendulumEnv(), **{"n_steps": 8, "batch_size": 8, "device": "cpu"} | settings)


def texts_of(caught, part):
    return [str(each.message) for each in caught if part in str(each.message)]


def test_a_rank_that_is_alone_synchronizes_nothing():
    sync, callback = make_rollout_sync(None, ALONE), Own()
    assert type(sync) is NoSync
    assert sync.callbacks(callback) is callback
    assert sync.callbacks(None) is None
    with sync.session(None):
        sync.after_reset(10)
        sync.after_resume()
        sync.after_update()
    assert [sync.after_rollout(is_complete, callback) for is_complete in (True, False)] == [True, False]


def test_one_of_several_ranks_calls_its_own_callback_before_the_users():
    several = type("Several", (type(ALONE),), {"size": 2})()
    sync, own = make_rollout_sync(pendulum_model(), several), Own()
    assert isinstance(sync, RolloutSync)
    assert sync.callbacks(own) == sync.callbacks([own]) == [sync, own]
    assert sync.callbacks(None) == [sync]
    assert isinstance(sync.callbacks(lambda *_: True)[1], ConvertCallback)


def test_ranks_with_different_checkpoint_callbacks_are_stopped():
    models = [pendulum_model() for _ in range(2)]

    def enter(communicator):
        sync = make_rollout_sync(models[communicator.rank], communicator)
        with pytest.raises(RanksPartedError) as raised, sync.session(Own() if communicator.rank else Stop()):
            pass
        return str(raised.value)

    assert all("rank 1 in checkpoint callback ('Own', not 'Stop')" in text for text in in_threads(2, enter))


def test_items_of_all_ranks_are_interleaved_in_the_order_of_their_times():
    assert interleave([[1, 2, 3, 4], ["a", "b"]]) == [1, 2, "a", 3, 4, "b"]
    assert interleave([[], [1], []]) == [1]
    last = interleave([[0] * 150, [1] * 150, [2] * 50])[-100:]
    assert [last.count(rank) for rank in range(3)] == [42, 43, 15]


# ------------------------------------------------------------------------------------------------------- in processes

N_STEPS, N_ROLLOUTS = 64, 3
N_OF_ROLLOUT = N_STEPS // 2 * (1 + 2)  # rank 0 has one env, rank 1 two


def statistics_in(vec_env):
    return [(each.mean.tolist(), each.var.tolist(), each.n) for each in map(moments_of, statistics_of(vec_env))]


def digest(model):
    tensors = [*model.policy.state_dict().values()]
    return hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in tensors)).hexdigest()


class Recorder(Own):
    """
    Records what a user's callback sees.

    ``timesteps`` at each step and ``ends`` after each rollout; ``merged``, which should be the same on all ranks, before each
    rollout and at the end; ``own``, what this rank alone has observed, after each rollout.
    """

    def __init__(self):
        super().__init__()
        self.timesteps, self.ends, self.merged, self.own = [], [], [], []

    def _windows(self):
        return {
            "episodes": [float(each["r"]) for each in self.model.ep_info_buffer],
            "successes": [*self.model.ep_success_buffer],
        }

    def _on_rollout_start(self) -> None:
        state = {"timesteps": self.model.num_timesteps, "statistics": statistics_in(self.training_env)}
        self.merged.append(state | self._windows())

    def _on_step(self) -> bool:
        self.timesteps.append(self.num_timesteps)
        return True

    def _on_rollout_end(self) -> None:
        self.ends.append(self.model.num_timesteps)
        new = {name: values[len(self.merged[-1][name]) :] for name, values in self._windows().items()}
        self.own.append(new | {"statistics": statistics_in(self.training_env)})

    def _on_training_end(self) -> None:
        self._on_rollout_start()


def learn_three_times(rank, folder):
    """Train with callbacks, continue, and continue again until one rank's callback ends the run; weights differ at first."""
    th.manual_seed(rank)
    np.random.seed(rank)
    make_env = partial(SometimesSuccessful, VECTOR, BOX_ACTION)
    env = VecNormalize(make_vec_env(make_env, n_envs=1 + rank, seed=rank))
    model = TRPO("MlpPolicy", env, n_steps=N_STEPS, batch_size=24, n_critic_updates=2, device="cpu")
    digests = [digest(model)]
    if rank == 1:  # an optimizer of another state, as after loading
        for parameter in model.policy.parameters():
            parameter.grad = th.ones_like(parameter)
        model.policy.optimizer.step()
    model.set_logger(configure(f"{folder}/log{rank}", ["csv"]))
    evaluation = EvalCallback(VecNormalize(make_vec_env(make_env)), eval_freq=20, n_eval_episodes=1, verbose=0)
    recorder, further = Recorder(), Recorder()
    model.learn(N_ROLLOUTS * N_OF_ROLLOUT, [recorder, evaluation])
    n_outputs = len(model.logger.output_formats)
    digests.append(digest(model))
    model.learn(N_OF_ROLLOUT, further, reset_num_timesteps=False)
    continued = model.num_timesteps, model._n_updates
    digests.append(digest(model))
    model.learn(5 * N_OF_ROLLOUT, Stop() if rank == 1 else None, reset_num_timesteps=False)
    model.save(f"{folder}/model{rank}")
    return {
        **{name: getattr(recorder, name) for name in ("timesteps", "ends", "merged", "own")},
        "first of further timesteps": further.timesteps[0],
        "digests": digests,
        "outputs": n_outputs,
        "evaluated": evaluation.n_calls > 0 and bool(np.isfinite(evaluation.last_mean_reward)),
        "continued": continued,
        "stopped": (model.num_timesteps, model._n_updates),
        "window": model.ep_info_buffer.maxlen,
        "n_steps": model.n_steps,
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("run")


@pytest.fixture(scope="module")
def ranks(folder):
    return in_ranks(2, learn_three_times, str(folder))


def test_callbacks_see_the_timesteps_of_all_ranks_grow(ranks):
    for each in ranks:
        timesteps, ends = each["timesteps"], [N_OF_ROLLOUT * (1 + index) for index in range(N_ROLLOUTS)]
        assert len(timesteps) == N_ROLLOUTS * N_STEPS // 2
        assert all(later - earlier == 3 for earlier, later in zip([0, *timesteps], timesteps, strict=False))
        assert each["ends"] == ends
        assert [state["timesteps"] for state in each["merged"]] == [0, *ends]


@pytest.mark.parametrize("window", ["episodes", "successes"])
def test_all_ranks_have_the_same_episodes_and_successes_after_each_rollout(ranks, window):
    first, second = ranks
    known = []
    for index in range(N_ROLLOUTS):
        new = [each["own"][index][window] for each in ranks]
        assert all(new)
        known += interleave(new)
        assert first["merged"][index + 1][window] == second["merged"][index + 1][window] == known[-100:]
    assert len({*known}) > 1
    assert {each["window"] for each in ranks} == {100}


def test_all_ranks_have_the_merged_statistics_after_each_rollout(ranks):
    first, second = ([state["statistics"] for state in each["merged"]] for each in ranks)
    assert first == second
    assert [len(statistics) for statistics in first] == [2] * (N_ROLLOUTS + 1)
    for index in range(N_ROLLOUTS):
        for place, (before, after) in enumerate(zip(first[index], first[index + 1], strict=True)):
            own = [Moments(*map(np.asarray, each["own"][index]["statistics"][place])) for each in ranks]
            past, expected = Moments(*map(np.asarray, before)), RunningMeanStd(shape=np.shape(before[0]))
            merge(expected, past, [added(past, each) for each in own])
            np.testing.assert_array_equal(expected.mean, after[0])
            np.testing.assert_array_equal(expected.var, after[1])
            assert expected.count == after[2] == pytest.approx(before[2] + N_OF_ROLLOUT)
    (*_, n_observations), (*_, n_returns) = first[0]
    assert n_observations == pytest.approx(3, abs=1e-3)  # the first of each environment; SB3 starts counting from 1e-4
    assert n_returns == pytest.approx(0, abs=1e-3)


def test_all_ranks_have_the_same_parameters_although_generators_differ(ranks):
    first, second = (each["digests"] for each in ranks)
    assert first == second
    assert len(set(first)) == 3


def test_only_the_first_rank_logs_evaluates_and_writes(folder, ranks):
    assert [each["outputs"] for each in ranks] == [1, 0]
    assert [each["evaluated"] for each in ranks] == [True, False]
    assert (folder / "model0.zip").exists()
    assert not (folder / "model1.zip").exists()
    assert len((folder / "log0" / "progress.csv").read_text().splitlines()) >= 1 + N_ROLLOUTS


def test_a_second_run_continues_counting(ranks):
    n_timesteps = N_ROLLOUTS * N_OF_ROLLOUT
    for each in ranks:
        assert each["continued"] == (n_timesteps + N_OF_ROLLOUT, N_ROLLOUTS + 1)
        assert each["first of further timesteps"] == n_timesteps + 3
        assert each["n_steps"] == N_STEPS


def test_a_callback_of_one_rank_ends_the_run_of_all(ranks):
    n_timesteps = (N_ROLLOUTS + 1) * N_OF_ROLLOUT + 5 * 2 + N_STEPS // 2
    assert [each["stopped"] for each in ranks] == [(n_timesteps, N_ROLLOUTS + 1)] * 2


def spoil(model):
    with th.no_grad():
        model.policy.value_net.bias += 1e-3


def learn_from_equal_rollouts_until_parameters_differ(rank):
    th.manual_seed(0)
    env = make_vec_env(PendulumEnv, seed=0)
    model = TRPO("MlpPolicy", env, n_steps=N_STEPS, batch_size=32, n_critic_updates=1, device="cpu")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.learn(N_STEPS)
    n_timesteps = model.num_timesteps
    with pytest.raises(RanksPartedError) as raised:
        model.learn(N_STEPS, AtRolloutEnd(spoil) if rank else None)
    return texts_of(caught, "different rollouts"), n_timesteps, str(raised.value)


def test_equal_rollouts_give_a_warning_and_different_parameters_an_error():
    (warned, *first), (silent, *second) = in_ranks(2, learn_from_equal_rollouts_until_parameters_differ)
    [text] = warned
    assert text.startswith("2 ranks have collected 1 different rollouts")
    assert "seed" in text
    assert silent == []
    for n_timesteps, error in (first, second):
        assert n_timesteps == N_STEPS
        assert error.startswith("Ranks 1 of 2 differ from rank 0 in parameters: rank 1 in ")
        assert "value_net.bias" in error


def differ_in_environments_and_settings(rank):
    with pytest.raises(RanksPartedError, match=r"rank 1 in .*mlp_extractor"):
        TRPO("MlpPolicy", "CartPole-v1" if rank else "Pendulum-v1", device="cpu")
    env = make_vec_env("Pendulum-v1")
    model = TRPO("MlpPolicy", env, n_steps=N_STEPS, target_kl=0.01 * (1 + rank), seed=0, device="cpu")
    numbers = float(th.rand(1)), float(env.reset()[0, 0])
    with pytest.raises(RanksPartedError) as raised:
        model.learn(N_STEPS)
    return numbers, str(raised.value), model._last_obs is not None


def test_ranks_with_other_environments_or_settings_are_stopped_and_one_seed_gives_each_its_own_numbers():
    first, second = in_ranks(2, differ_in_environments_and_settings)
    for _, error, has_collected in (first, second):
        assert error.startswith("Ranks 1 of 2 differ from rank 0 in settings: rank 1 in target_kl (0.02, not 0.01).")
        assert not has_collected
    assert all(one != other for one, other in zip(first[0], second[0], strict=True))


def lower(model):
    if model._n_updates == 1:
        model.target_kl, model.n_critic_updates = 0.002, 1
        model.lr_schedule = lambda _: 1e-4


def learn_with_a_first_rank_that_changes_settings(rank, folder):
    callback = AtRolloutEnd(lower)
    callback.first_rank_only = True
    env = make_vec_env("Pendulum-v1", 2, monitor_dir=str(folder))
    model = TRPO("MlpPolicy", env, n_steps=64, n_critic_updates=3, seed=0, device="cpu")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.learn(4 * 128, callback=callback)
    state = {name: tensor.numpy().tobytes() for name, tensor in model.policy.state_dict().items()}
    rates = [group["lr"] for group in model.policy.optimizer.param_groups]
    return {
        "shared": (model.target_kl, model.n_critic_updates, rates, state),
        "writes": [monitor.results_writer is not None for monitor in model.env.envs],
        "warnings": texts_of(caught, "Monitor writes"),
    }


def test_changed_settings_and_monitor_files_are_the_first_ranks(tmp_path):
    first, second = in_ranks(2, learn_with_a_first_rank_that_changes_settings, tmp_path)
    assert first["shared"] == second["shared"]
    assert first["shared"][:3] == (0.002, 1, [1e-4])
    assert first["writes"] == [True, True]
    assert second["writes"] == [False, False]
    assert "0.monitor.csv on several ranks" in first["warnings"][0]
    assert second["warnings"] == []
