import warnings

import pytest
from helpers.envs import VECTOR, RandomEnv
from helpers.ranks import in_threads
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
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecMonitor

from sb3_trpo.callbacks import callback_tree
from sb3_trpo.parallel.communicator import ALONE
from sb3_trpo.parallel.first_rank import callbacks_of_other_ranks, leave_monitor_files_to_first_rank, monitors_by_file


class Own(BaseCallback):
    """One of the user's."""

    def _on_step(self) -> bool:
        return True


def evaluation():
    return EvalCallback(make_vec_env("Pendulum-v1"))


def checkpoints():
    return CheckpointCallback(10, "models")


def leaves(callbacks):
    return [each for each in callback_tree(callbacks_of_other_ranks(callbacks)) if not isinstance(each, CallbackList)]


@pytest.mark.parametrize("make", [evaluation, checkpoints, ProgressBarCallback])
def test_callbacks_that_evaluate_write_or_draw_are_left_out_wherever_they_are(make):
    one, two = Own(), Own()
    assert callbacks_of_other_ranks([one, make(), two]) == [one, two]
    assert {*leaves([CallbackList([make(), one]), two])} == {one, two}
    assert callbacks_of_other_ranks([CallbackList([CallbackList([make()])])]) == []
    assert callbacks_of_other_ranks([EveryNTimesteps(5, make()), one]) == [one]
    assert callbacks_of_other_ranks([EveryNTimesteps(5, CallbackList([make()])), one]) == [one]


def test_an_event_keeps_the_callbacks_that_are_for_every_rank():
    own, only = Own(), checkpoints()
    event = EveryNTimesteps(5, CallbackList([own, only]))
    found = [*callback_tree(callbacks_of_other_ranks([event]))]
    assert own in found
    assert only not in found
    assert only in [*callback_tree(event)]  # the first rank's own is not changed


def test_the_users_own_callbacks_stay():
    stay = [Own(), ConvertCallback(lambda *_: True), StopTrainingOnMaxEpisodes(5)]
    events = [EveryNTimesteps(5, Own()), EveryNTimesteps(5, CallbackList([Own(), Own()]))]
    assert callbacks_of_other_ranks([*stay, *events]) == [*stay, *events]


def test_a_callback_may_decide_whether_it_is_for_the_first_rank_only():
    own, everywhere = Own(), checkpoints()
    own.first_rank_only, everywhere.first_rank_only = True, False
    assert callbacks_of_other_ranks([own, everywhere]) == [everywhere]
    assert leaves([EveryNTimesteps(5, own), CallbackList([everywhere, own])]) == [everywhere]


def monitored(path=None):
    return DummyVecEnv([lambda: Monitor(RandomEnv(VECTOR), path and str(path))])


def test_monitors_are_found_by_the_absolute_paths_of_their_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    bare = DummyVecEnv([lambda: RandomEnv(VECTOR)])
    inside, around = monitored("inside"), VecMonitor(bare, str(tmp_path / "around"))
    assert monitors_by_file(VecFrameStack(inside, 2)) == {str(tmp_path / "inside.monitor.csv"): inside.envs[0]}
    assert monitors_by_file(around) == {str(tmp_path / "around.monitor.csv"): around}
    assert monitors_by_file(monitored()) == monitors_by_file(bare) == {}


def test_only_the_first_rank_goes_on_writing_to_a_shared_file(tmp_path):
    shared, own = monitored(tmp_path / "0"), monitored(tmp_path / "1")
    envs = [shared, monitored(tmp_path / "0"), own]
    writer = envs[1].envs[0].results_writer
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        in_threads(3, lambda communicator: leave_monitor_files_to_first_rank(envs[communicator.rank], communicator))
        leave_monitor_files_to_first_rank(own, ALONE)
    assert [env.envs[0].results_writer is not None for env in envs] == [True, False, True]
    assert writer.file_handler.closed
    (warning,) = caught
    assert f"Monitor writes to {tmp_path / '0.monitor.csv'} on several ranks" in str(warning.message)
