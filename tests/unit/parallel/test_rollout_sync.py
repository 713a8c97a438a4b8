import hashlib
import time
import warnings

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from gymnasium.envs.classic_control import PendulumEnv
from helpers.envs import BOX_ACTION, VECTOR, RandomEnv
from helpers.ranks import in_ranks
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CallbackList,
    CheckpointCallback,
    ConvertCallback,
    EvalCallback,
    EveryNTimesteps,
    ProgressBarCallback,
    StopTrainingOnMaxEpisodes,
)
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import configure
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecNormalize

from sb3_trpo import TRPO
from sb3_trpo.callbacks import RunKeeper, callback_tree
from sb3_trpo.parallel.communicator import ALONE
from sb3_trpo.parallel.faults import RanksPartedError
from sb3_trpo.parallel.first_rank import callbacks_of_other_ranks
from sb3_trpo.parallel.rollout_sync import NoSync, RolloutSync, interleave, make_rollout_sync
from sb3_trpo.parallel.running_statistics import Moments, added, merge, moments_of, statistics_of


def leaves(callbacks):
    return [each for each in callback_tree(callbacks_of_other_ranks(callbacks)) if not isinstance(each, CallbackList)]


class Leaf(BaseCallback):
    def _on_step(self) -> bool:
        return True


def evaluation():
    return EvalCallback(make_vec_env("Pendulum-v1"))


def checkpoints():
    return CheckpointCallback(10, "models")


@pytest.mark.parametrize("make", [evaluation, checkpoints, ProgressBarCallback])
def test_what_evaluates_writes_or_draws_is_left_out_wherever_it_is(make):
    one, two = Leaf(), Leaf()
    assert callbacks_of_other_ranks([one, make(), two]) == [one, two]
    assert {*leaves([CallbackList([make(), one]), two])} == {one, two}
    assert callbacks_of_other_ranks([CallbackList([CallbackList([make()])])]) == []
    assert callbacks_of_other_ranks([EveryNTimesteps(5, make()), one]) == [one]
    assert callbacks_of_other_ranks([EveryNTimesteps(5, CallbackList([make()])), one]) == [one]


def test_of_several_callbacks_that_an_event_holds_only_those_for_the_first_rank_are_left_out():
    only = checkpoints()
    assert only not in [*callback_tree(callbacks_of_other_ranks([EveryNTimesteps(5, CallbackList([Leaf(), only]))]))]


def test_an_event_that_holds_several_callbacks_for_every_rank_stays():
    event = EveryNTimesteps(5, CallbackList([Leaf(), Leaf()]))
    assert callbacks_of_other_ranks([event]) == [event]


def test_callbacks_of_the_users_own_stay():
    stay = [Leaf(), ConvertCallback(lambda *_: True), RunKeeper(), StopTrainingOnMaxEpisodes(5)]
    events = [EveryNTimesteps(5, Leaf()), EveryNTimesteps(5, CallbackList([Leaf()]))]
    assert callbacks_of_other_ranks([*stay, *events]) == [*stay, *events]


def test_a_callback_may_say_for_itself_whether_it_is_for_the_first_rank_only():
    own, everywhere = Leaf(), checkpoints()
    own.first_rank_only, everywhere.first_rank_only = True, False
    assert callbacks_of_other_ranks([own, everywhere]) == [everywhere]
    assert leaves([EveryNTimesteps(5, own), CallbackList([everywhere, own])]) == [everywhere]


def test_one_rank_has_no_crew():
    crew = make_rollout_sync(None, ALONE)
    callback = Leaf()
    assert type(crew) is NoSync
    assert crew.callbacks(callback) is callback
    assert crew.callbacks(None) is None
    assert [crew.after_rollout(is_complete, callback) for is_complete in (True, False)] == [True, False]


# ---------------------------------------------------------------------------------------------------- in real processes

ODD_DICT = spaces.Dict({"vector": VECTOR, "choice": spaces.Discrete(3)})
N_STEPS, N_ROLLOUTS = 64, 3
N_OF_ROLLOUT = N_STEPS // 2 * (1 + 2)  # rank 0 has one env, rank 1 two


def numbers_of(venv):
    return [(each.mean.tolist(), each.var.tolist(), each.n) for each in map(moments_of, statistics_of(venv))]


def digest(model):
    tensors = [*model.policy.state_dict().values()]
    return hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in tensors)).hexdigest()


class Recorder(BaseCallback):
    """Notes what a callback of the user's sees, and how the ranks' merged state is."""

    def __init__(self):
        super().__init__()
        self.timesteps, self.ends, self.states, self.own = [], [], [], []

    def _note(self):
        episodes = [float(each["r"]) for each in self.model.ep_info_buffer]
        self.states.append((self.model.num_timesteps, numbers_of(self.training_env), episodes))

    def _on_rollout_start(self) -> None:
        self._note()

    def _on_step(self) -> bool:
        self.timesteps.append(self.num_timesteps)
        return True

    def _on_rollout_end(self) -> None:
        self.ends.append(self.model.num_timesteps)
        n_known = len(self.states[-1][2])
        self.own.append((numbers_of(self.training_env), [float(each["r"]) for each in [*self.model.ep_info_buffer][n_known:]]))

    def _on_training_end(self) -> None:
        self._note()


class Stop(BaseCallback):
    def _on_step(self) -> bool:
        return self.n_calls < 5


def seed_generators(seed):
    th.manual_seed(seed)
    np.random.seed(seed)


def small_env():
    return RandomEnv(VECTOR, BOX_ACTION)


def run_together(rank, folder):
    seed_generators(rank)
    env = VecNormalize(make_vec_env(small_env, n_envs=1 + rank, seed=rank))
    model = TRPO("MlpPolicy", env, n_steps=N_STEPS, batch_size=24, n_critic_updates=2, device="cpu")
    begun = digest(model)
    model.set_logger(configure(f"{folder}/log{rank}", ["csv"]))
    evaluate = EvalCallback(VecNormalize(make_vec_env(small_env)), eval_freq=20, n_eval_episodes=1, verbose=0)
    recorder, further = Recorder(), Recorder()
    model.learn(N_ROLLOUTS * N_OF_ROLLOUT, [recorder, evaluate])
    outputs, learnt = len(model.logger.output_formats), digest(model)
    model.learn(N_OF_ROLLOUT, further, reset_num_timesteps=False)
    continued = model.num_timesteps, model._n_updates, digest(model)
    model.learn(5 * N_OF_ROLLOUT, Stop() if rank == 1 else None, reset_num_timesteps=False)
    model.save(f"{folder}/model{rank}")
    return {
        "recorded": (recorder.timesteps, recorder.ends, recorder.states, recorder.own),
        "further": further.timesteps,
        "digests": (begun, learnt, continued[2]),
        "outputs": outputs,
        "evaluated": evaluate.n_calls > 0 and np.isfinite(evaluate.last_mean_reward),
        "continued": continued[:2],
        "stopped": (model.num_timesteps, model._n_updates),
        "window": model.ep_info_buffer.maxlen,
        "setting": model.n_steps,
    }


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return folder, in_ranks(2, run_together, str(folder))


def test_callbacks_see_the_timesteps_of_the_world_grow(run):
    for rank, each in enumerate(run[1]):
        timesteps, ends, states, _ = each["recorded"]
        assert len(timesteps) == N_ROLLOUTS * N_STEPS // 2
        assert all(later - earlier == 3 for earlier, later in zip([0, *timesteps], timesteps, strict=False)), rank
        assert ends == [N_OF_ROLLOUT * (1 + index) for index in range(N_ROLLOUTS)]
        assert [n for n, *_ in states] == [0, *ends]


def test_all_ranks_hold_the_same_episodes_after_each_rollout(run):
    (*_, states, own), (*_, others, their_own) = (each["recorded"] for each in run[1])
    assert [episodes for *_, episodes in states] == [episodes for *_, episodes in others]
    known = []
    for (*_, episodes), (_, mine), (_, theirs) in zip(states[1:], own, their_own, strict=True):
        assert mine
        assert theirs
        known += interleave([mine, theirs])
        assert episodes == known[-100:]
    assert {each["window"] for each in run[1]} == {100}


def as_statistics(numbers):
    mean, var, n = map(np.asarray, numbers)
    statistics = RunningMeanStd(shape=mean.shape)
    statistics.mean, statistics.var, statistics.count = mean, var, n
    return statistics


def test_all_ranks_hold_the_merged_statistics_after_each_rollout(run):
    records = [each["recorded"] for each in run[1]]
    for index in range(N_ROLLOUTS):
        before, after = records[0][2][index][1], records[0][2][index + 1][1]
        assert len(before) == 2
        assert records[1][2][index + 1][1] == after
        for place, (was, now) in enumerate(zip(before, after, strict=True)):
            past = moments_of(as_statistics(was))
            parts = [added(past, Moments(*map(np.asarray, record[3][index][0][place]))) for record in records]
            expected = as_statistics(was)
            merge(expected, past, parts)
            np.testing.assert_array_equal(expected.mean, now[0])
            np.testing.assert_array_equal(expected.var, now[1])
            assert expected.count == now[2] == pytest.approx(was[2] + N_OF_ROLLOUT)


def test_the_first_observations_of_all_are_in_the_statistics(run):
    for each in run[1]:
        observed, returns = each["recorded"][2][0][1]
        assert observed[2] == pytest.approx(3, abs=1e-3)  # SB3 begins at 1e-4
        assert returns[2] == pytest.approx(0, abs=1e-3)


def test_all_ranks_have_the_same_parameters_though_generators_differ(run):
    first, second = (each["digests"] for each in run[1])
    assert first == second
    assert len(set(first)) == 3


def test_only_the_first_rank_logs_evaluates_and_writes(run):
    folder, communicator = run
    assert [each["outputs"] for each in communicator] == [1, 0]
    assert [bool(each["evaluated"]) for each in communicator] == [True, False]
    assert (folder / "model0.zip").exists()
    assert not (folder / "model1.zip").exists()
    assert len((folder / "log0" / "progress.csv").read_text().splitlines()) >= 1 + N_ROLLOUTS


def test_a_second_run_goes_on_counting(run):
    n = N_ROLLOUTS * N_OF_ROLLOUT
    for each in run[1]:
        assert each["continued"] == (n + N_OF_ROLLOUT, N_ROLLOUTS + 1)
        assert each["further"][0] == n + 3
        assert each["setting"] == N_STEPS


def test_a_callback_of_one_rank_ends_the_run_of_all(run):
    n = (N_ROLLOUTS + 1) * N_OF_ROLLOUT + 5 * 2 + N_STEPS // 2
    assert [each["stopped"] for each in run[1]] == [(n, N_ROLLOUTS + 1)] * 2


class Spoil(BaseCallback):
    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        with th.no_grad():
            self.model.policy.value_net.bias += 1e-3


def learn_alike(rank):
    seed_generators(0)
    env = make_vec_env(PendulumEnv, seed=0)
    model = TRPO("MlpPolicy", env, n_steps=N_STEPS, batch_size=32, n_critic_updates=1, device="cpu")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.learn(N_STEPS)
    n_counted = model.num_timesteps
    with pytest.raises(RanksPartedError) as parted:
        model.learn(N_STEPS, Spoil() if rank else None)
    return [str(each.message) for each in caught if "different rollouts" in str(each.message)], n_counted, str(parted.value)


@pytest.fixture(scope="module")
def alike():
    return in_ranks(2, learn_alike)


def test_ranks_that_collect_the_same_are_warned_of_once(alike):
    (warned, n_counted, _), (others, *_) = alike
    [text] = warned
    assert text.startswith("2 ranks have collected 1 different rollouts")
    assert "seed" in text
    assert others == []
    assert n_counted == N_STEPS


def test_ranks_whose_parameters_part_are_stopped(alike):
    for *_, text in alike:
        assert text.startswith("Ranks 1 of 2 differ from rank 0 in parameters: rank 1 in ")
        assert "value_net.bias" in text


def learn_apart(rank):
    env = make_vec_env("Pendulum-v1")
    model = TRPO("MlpPolicy", env, n_steps=N_STEPS, target_kl=0.01 * (1 + rank), seed=0, device="cpu")
    drawn = float(th.rand(1)), float(env.reset()[0, 0])
    with pytest.raises(RanksPartedError) as parted:
        model.learn(N_STEPS)
    return str(parted.value), model.num_timesteps, model._last_obs is None, drawn


@pytest.fixture(scope="module")
def apart():
    return in_ranks(2, learn_apart)


def test_settings_that_differ_are_named_before_anything_is_collected(apart):
    for text, n_timesteps, is_untouched, _ in apart:
        assert text.startswith("Ranks 1 of 2 differ from rank 0 in settings: rank 1 in target_kl (0.02, not 0.01).")
        assert n_timesteps == 0
        assert is_untouched


def test_each_rank_draws_its_own_numbers_from_one_seed(apart):
    (*_, first), (*_, second) = apart
    assert all(one != other for one, other in zip(first, second, strict=True))


class BreakingEnv(RandomEnv):
    def step(self, action):
        if self.breaks and self.n_steps == 5:
            raise ZeroDivisionError("the env broke")
        return super().step(action)


def learn_and_break(rank):
    seed_generators(rank)
    settings = {"batch_size": 3, "n_critic_updates": 2, "sub_sampling_factor": 2, "fisher_subsampling": 2, "device": "cpu"}
    odd = TRPO("MultiInputPolicy", make_vec_env(lambda: RandomEnv(ODD_DICT), seed=rank), n_steps=5, **settings)
    odd.learn(15)
    too_few = None
    try:
        TRPO("MlpPolicy", "Pendulum-v1", n_steps=1, normalize_advantage=False, device="cpu")
    except ValueError as error:
        too_few = str(error)
    env = make_vec_env(lambda: BreakingEnv(VECTOR))
    env.envs[0].unwrapped.breaks = rank == 1
    model = TRPO("MlpPolicy", env, n_steps=N_STEPS, device="cpu")
    with pytest.raises((ZeroDivisionError, RanksPartedError)) as broken:
        model.learn(N_STEPS)
    return digest(odd), odd.num_timesteps, too_few, type(broken.value).__name__, str(broken.value)


@pytest.fixture(scope="module")
def broken():
    return in_ranks(2, learn_and_break)


def test_ranks_whose_rollouts_are_tiny_and_uneven_stay_together(broken):
    assert broken[0][:2] == broken[1][:2]
    assert broken[0][1] == 15


def test_too_few_steps_for_the_ranks_are_refused(broken):
    assert all("n_steps is 1, which 2 ranks share" in each[2] for each in broken)


def test_who_waits_for_a_rank_whose_env_broke_is_told_so(broken):
    (*_, waiting, text), (*_, culprit, _) = broken
    assert (waiting, culprit) == ("RanksPartedError", "ZeroDivisionError")
    assert "rank 1 ended with ZeroDivisionError: the env broke" in text


def test_several_ranks_have_a_crew_that_comes_before_the_users_callbacks():
    several = type("Several", (type(ALONE),), {"size": 2})()
    model = TRPO("MlpPolicy", "Pendulum-v1", n_steps=8, batch_size=8, device="cpu")
    crew, mine = make_rollout_sync(model, several), Leaf()
    assert isinstance(crew, RolloutSync)
    assert crew.callbacks(mine) == crew.callbacks([mine]) == [crew, mine]
    assert crew.callbacks(None) == [crew]
    assert isinstance(crew.callbacks(lambda *_: True)[1], ConvertCallback)


def test_what_ranks_have_seen_is_merged_as_it_came():
    assert interleave([[1, 2, 3, 4], ["a", "b"]]) == [1, 2, "a", 3, 4, "b"]
    assert interleave([[], [1], []]) == [1]
    last = interleave([[0] * 150, [1] * 150, [2] * 50])[-100:]
    assert [last.count(rank) for rank in range(3)] == [42, 43, 15]


class Lower(BaseCallback):
    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        if self.model._n_updates == 1:
            self.model.target_kl, self.model.n_critic_updates = 0.002, 1
            self.model.lr_schedule = lambda _: 1e-4


def learn_with_a_first_rank_that_changes_settings(rank, folder):
    lower = Lower()
    lower.first_rank_only = True
    env = make_vec_env("Pendulum-v1", 2, monitor_dir=str(folder))
    model = TRPO("MlpPolicy", env, n_steps=64, n_critic_updates=3, seed=0, device="cpu")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.learn(4 * 128, callback=lower)
    written = [monitor.results_writer is not None for monitor in model.env.envs]
    rates = [group["lr"] for group in model.policy.optimizer.param_groups]
    state = {name: tensor.numpy().tobytes() for name, tensor in model.policy.state_dict().items()}
    told = [str(each.message) for each in caught if "Monitor writes" in str(each.message)]
    return model.target_kl, model.n_critic_updates, rates, state, written, told


def test_the_first_ranks_settings_count_and_its_monitor_files_are_its_own(tmp_path):
    first, second = in_ranks(2, learn_with_a_first_rank_that_changes_settings, tmp_path)
    assert first[:4] == second[:4]
    assert first[:3] == (0.002, 1, [1e-4])
    assert first[4:] == ([True, True], first[5])
    assert "0.monitor.csv on several ranks" in first[5][0]
    assert second[4:] == ([False, False], [])


def make_what_differs(rank):
    with pytest.raises(RanksPartedError, match=r"rank 1 in .*mlp_extractor"):
        TRPO("MlpPolicy", "CartPole-v1" if rank else "Pendulum-v1", device="cpu")
    return True


def test_ranks_with_different_envs_are_told_so_when_the_model_is_made():
    assert in_ranks(2, make_what_differs) == [True, True]


def learn_again_after_an_error(rank):
    model = TRPO("MlpPolicy", "Pendulum-v1", n_steps=32, device="cpu")

    def breaks(*_):
        raise OSError("no more disk")

    texts = []
    for callback in (breaks if rank == 1 else None, None):
        with pytest.raises((OSError, RuntimeError)) as raised:
            model.learn(1000, callback=callback)
        texts.append(str(raised.value))
        time.sleep(0.5)
    return texts


def test_who_learns_again_after_an_error_is_told_to_start_again():
    first, second = in_ranks(2, learn_again_after_an_error)
    assert "rank 1 ended with OSError: no more disk" in first[0]
    assert second[0] == "no more disk"
    assert "start the script again" in first[1]
    assert first[1] == second[1]
