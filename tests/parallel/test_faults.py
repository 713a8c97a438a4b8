"""Ranks that die, hang back or are started again: what becomes of the others, and of the run."""

import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.forked import SERVER
from helpers.ranks import in_ranks, start
from helpers.runs import outcome
from helpers.scripts import environment
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from sb3_trpo import TRPO
from sb3_trpo.checkpoint import ResumableCheckpoint, callback as checkpoint_callback, run_folder as checkpoint_folder
from sb3_trpo.update.flat_adam import FlatAdam
from sb3_trpo.update.surrogate import PolicyObjective

ITERATION, DEADLINE = 128, 20.0
SCRIPT = ("-m", "helpers.parallel_run")


class At(BaseCallback):
    """Do something at one step."""

    def __init__(self, step: int, act: Callable[[], object]) -> None:
        super().__init__()
        self.step, self.act = step, act

    def _on_step(self) -> bool:
        if self.n_calls == self.step:
            self.act()
        return True


def make(**settings: Any) -> TRPO:
    env = VecNormalize(make_vec_env("Pendulum-v1", 2))
    return TRPO("MlpPolicy", env, **{"n_steps": 64, "n_critic_updates": 2, "seed": 0, "device": "cpu", **settings})


def state_of(model: TRPO) -> dict[str, np.ndarray]:
    return {name: tensor.numpy().copy() for name, tensor in model.policy.state_dict().items()}


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return all(np.array_equal(value, other[name]) for name, value in one.items())


def after(owner: Any, name: str, times: int, act: Callable[[], object]) -> None:
    """Have something done within the n-th call of a function."""
    function, calls = getattr(owner, name), [0]

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] == times:
            act()
        return function(*args, **kwargs)

    setattr(owner, name, counted)


def note_states(model: TRPO, part: str, states: list[dict[str, np.ndarray]]) -> None:
    """Note what the policy is after each call of a part of the update."""
    method = getattr(model, part)

    def noted(*args: Any) -> None:
        method(*args)
        states.append(state_of(model))

    setattr(model, part, noted)


def kill(died_at: Any) -> None:
    died_at.value = time.monotonic()
    os.kill(os.getpid(), signal.SIGKILL)


def run_until_killed(rank: int, phase: str, victim: int, folder: Path, died_at: Any) -> dict[str, Any]:
    """Train until a rank dies; tell what the others say and hold."""
    model = make()
    callbacks: list[BaseCallback] = [ResumableCheckpoint(folder, every=1)]

    def act() -> None:
        kill(died_at)

    if rank == victim:
        if phase == "collect":
            callbacks.append(At(40, act))
        elif phase == "evaluation":
            env = VecNormalize(make_vec_env("Pendulum-v1"), training=False, norm_reward=False)
            evaluation = EvalCallback(env, eval_freq=40, n_eval_episodes=1, verbose=0)
            after(env, "step_wait", 5, act)
            callbacks.append(evaluation)
        else:
            owner, name, times = {
                "policy step": (PolicyObjective, "evaluate", 2),
                "critic": (FlatAdam, "step", 3),
                "checkpoint": (checkpoint_callback, "write", 2),
            }[phase]
            after(owner, name, times, act)
    updates: list[dict[str, np.ndarray]] = [state_of(model)]
    for part in ("_improve_policy", "_fit_critic"):
        note_states(model, part, updates)
    try:
        model.learn(100 * ITERATION, callback=callbacks)
    except RuntimeError as error:
        told, seconds = f"{type(error).__name__}: {error}", time.monotonic() - died_at.value
    is_whole = any(same(each, state_of(model)) for each in updates)
    return {"told": told, "seconds": seconds, "is whole": is_whole}


PHASES = ("collect", "policy step", "critic", "checkpoint", "evaluation")


@pytest.mark.parametrize("phase", PHASES)
def test_a_killed_rank_stops_the_others_within_seconds_and_with_a_clear_message(phase, tmp_path):
    victim = 0 if phase in ("evaluation", "policy step") else 1
    n_ranks = 3 if phase == "collect" else 2
    died_at = SERVER.Value("d", 0.0)
    outcomes = [process.outcome() for process in start(n_ranks, run_until_killed, phase, victim, tmp_path, died_at)]
    assert outcomes[victim][0] == "died"
    for kind, result in (each for rank, each in enumerate(outcomes) if rank != victim):
        assert kind == "result", result
        assert "RanksPartedError" in result["told"]
        assert "has lost contact with the others" in result["told"]
        assert 0.0 < result["seconds"] < DEADLINE
        assert result["is whole"]
        print(f"{phase}: stopped {result['seconds']:.2f} s after the kill")


class EnvError(Exception):
    """Raised by an env."""


def run_until_an_env_breaks(rank: int) -> dict[str, Any]:
    model = make()

    def act() -> None:
        raise EnvError("the simulator exploded")

    began = time.monotonic()
    try:
        model.learn(10 * ITERATION, callback=At(40, act) if rank == 1 else None)
    except (EnvError, RuntimeError) as error:
        told = f"{type(error).__name__}: {error}"
    time.sleep(2.0 if rank == 1 else 0.0)  # the others need not wait for the process to end
    with pytest.raises(RuntimeError, match="start the script again"):
        TRPO("MlpPolicy", "Pendulum-v1", device="cpu")
    return {
        "told": told,
        "seconds": time.monotonic() - began,
        "finite": all(np.isfinite(v).all() for v in state_of(model).values()),
    }


def test_an_error_on_one_rank_is_told_to_the_others():
    first, second = in_ranks(2, run_until_an_env_breaks)
    assert second["told"] == "EnvError: the simulator exploded"
    assert "rank 1 ended with EnvError: the simulator exploded" in first["told"]
    assert first["seconds"] < 2.0 + DEADLINE


def run_slowly(rank: int, pause: float) -> dict[str, np.ndarray]:
    model = make()
    model.learn(2 * ITERATION, callback=At(40, lambda: time.sleep(pause * rank)))
    return state_of(model)


def test_a_slow_rank_is_waited_for_and_changes_nothing():
    slow, quick = in_ranks(2, run_slowly, 3.0), in_ranks(2, run_slowly, 0.0)
    assert same(slow[0], slow[1])
    assert same(slow[0], quick[0])


class CrashError(Exception):
    """Ends a run that is to be made again."""


def crash() -> None:
    raise CrashError


def run_in_parts(rank: int, folder: Path, stop: int | None, settings: dict[str, Any] | None = None) -> dict[str, Any]:
    """Train with checkpoints, to the end or until the first rank crashes at a step."""
    model = make(**(settings or {}))
    callbacks: list[BaseCallback] = [ResumableCheckpoint(folder, every=1, verbose=0)]
    if stop is not None and rank == 0:
        callbacks.append(At(stop, crash))
    begin: list[np.ndarray] = []
    after(TRPO, "collect_rollouts", 1, lambda: begin.append(np.array(model._last_obs)))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            model.learn(6 * ITERATION, callback=callbacks)
        except (CrashError, RuntimeError) as error:
            return {"error": str(error)}
    notes = [str(each.message) for each in caught if "rank(s)" in str(each.message)]
    statistics = model.get_vec_normalize_env().obs_rms
    seen = outcome(model, [])
    return {
        "seen": seen,
        "notes": notes,
        "updates": model._n_updates,
        "count": statistics.count,
        "obs": model._last_obs,
        "begin": begin[0],
    }


def test_a_run_of_two_ranks_that_crashes_twice_ends_like_one_that_does_not(tmp_path):
    whole = in_ranks(2, run_in_parts, tmp_path / "whole", None)
    pieces = tmp_path / "pieces"
    assert all("error" in result for result in in_ranks(2, run_in_parts, pieces, 70))
    assert {path.name for path in pieces.iterdir() if path.is_dir()} == {"rank-0-of-2", "rank-1-of-2"}
    assert all("error" in result for result in in_ranks(2, run_in_parts, pieces, 70))
    newest = sorted((pieces / "rank-1-of-2").glob("checkpoint-*"))[-1]
    (newest / "arrays.safetensors").write_bytes(b"")  # one that is not intact on all ranks is passed over
    resumed = in_ranks(2, run_in_parts, pieces, None)
    for one, other in zip(whole, resumed, strict=True):
        assert one["seen"] == other["seen"]
        assert np.array_equal(one["obs"], other["obs"])
        assert other["notes"] == []


@pytest.mark.parametrize(("before", "now"), [(2, 3), (2, 1), (1, 2)])
def test_another_number_of_ranks_goes_on_with_a_note(before, now, tmp_path):
    in_ranks(before, run_in_parts, tmp_path, 220 // before)
    results = in_ranks(now, run_in_parts, tmp_path, None)
    assert f"is of {before} rank(s), and the run continues on {now}" in results[0]["notes"][0]
    for result in results:
        assert result["updates"] == results[0]["updates"] > 3
        assert result["count"] == results[0]["count"]
        assert all(result["seen"][name] == value for name, value in results[0]["seen"].items() if name.startswith("policy"))
    first_observations = {result["begin"].tobytes() for result in results}
    assert len(first_observations) == now  # each rank has episodes of its own
    assert results[0]["notes"][1:] == []


def run_until_signalled(rank: int, folder: Path, victim: int) -> tuple[str | None, int]:
    keeper = ResumableCheckpoint(folder, every=10**6, verbose=0)
    signalled = [At(70, lambda: os.kill(os.getpid(), signal.SIGTERM))] if rank == victim else []
    model = make().learn(100 * ITERATION, callback=[keeper, *signalled])
    return keeper.stopped_by, model.num_timesteps


@pytest.mark.parametrize("victim", [0, 1])
def test_a_signal_to_one_rank_stops_all_at_the_same_boundary(victim, tmp_path):
    assert in_ranks(2, run_until_signalled, tmp_path, victim) == [("SIGTERM", 3 * ITERATION)] * 2
    assert len([*tmp_path.glob("rank-*-of-2/checkpoint-*")]) == 2


def run_short_of_disk(rank: int, folder: Path) -> bool:
    def full() -> None:
        raise OSError("no space left")

    if rank == 1:
        for times in (2, 3):
            after(checkpoint_callback, "write", times, full)
    with pytest.warns(UserWarning, match="No checkpoint could be written at 256 timesteps: OSError: no space left"):
        make().learn(3 * ITERATION, callback=ResumableCheckpoint(folder, every=1, keep=1, verbose=0))
    return True


def test_older_checkpoints_stay_until_every_rank_has_written(tmp_path):
    assert in_ranks(2, run_short_of_disk, tmp_path) == [True, True]
    first, second = ({path.name for path in (tmp_path / f"rank-{rank}-of-2").glob("checkpoint-*")} for rank in range(2))
    assert first & second


def run_with_a_folder_that_stays(rank: int, folder: Path) -> list[str]:
    """Train with checkpoints, the removal of which fails on one rank."""
    if rank == 1:
        replaced = checkpoint_folder.remove

        def refuse(path: Path) -> None:
            if path.name.endswith(f"-{2 * ITERATION:012d}"):
                raise PermissionError(13, "Permission denied")
            replaced(path)

        checkpoint_folder.remove = refuse
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        make().learn(5 * ITERATION, callback=ResumableCheckpoint(folder, every=2 * ITERATION, keep=1, verbose=0))
    return [str(each.message) for each in caught if "removed" in str(each.message)]


def test_a_removal_that_fails_on_one_rank_is_no_matter_for_the_others(tmp_path):
    first, second = in_ranks(2, run_with_a_folder_that_stays, tmp_path)
    assert first == []
    assert len(second) == 1
    assert "Permission denied" in second[0]
    there = [{int(path.name[-12:]) for path in tmp_path.glob(f"rank-{rank}-of-2/checkpoint-*")} for rank in range(2)]
    assert there[0] == {5 * ITERATION}
    assert there[1] == {2 * ITERATION, 5 * ITERATION}


def torchrun(folder: Path, update_of_death: int, *options: str) -> str:
    folder.mkdir()
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", *options]
    result = subprocess.run(
        [*command, *SCRIPT, str(folder), str(update_of_death)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env=environment(),
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_torchrun_starts_killed_ranks_again_and_the_run_ends_like_one_that_was_not(tmp_path):
    torchrun(tmp_path / "whole", -1)
    printed = torchrun(tmp_path / "pieces", 5, "--max-restarts", "1", "--monitor-interval", "0.1")
    assert printed.count("Continuing from") == 1
    for rank in range(2):
        assert (tmp_path / "whole" / f"outcome-{rank}.json").read_text() == (
            tmp_path / "pieces" / f"outcome-{rank}.json"
        ).read_text()
