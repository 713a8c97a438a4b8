"""Ranks that die, are slow or are restarted: what happens to the others, and to the run."""

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
from helpers import parallel_run
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


class At(BaseCallback):
    """Calls a function at one step."""

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
    """Call ``act`` inside the n-th call of a function."""
    function, calls = getattr(owner, name), [0]

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] == times:
            act()
        return function(*args, **kwargs)

    setattr(owner, name, counted)


def record_states(model: TRPO, part: str, states: list[dict[str, np.ndarray]]) -> None:
    """Record the policy after each call of a part of the update."""
    method = getattr(model, part)

    def recorded(*args: Any) -> None:
        method(*args)
        states.append(state_of(model))

    setattr(model, part, recorded)


def kill(died_at: Any) -> None:
    died_at.value = time.monotonic()
    os.kill(os.getpid(), signal.SIGKILL)


DEATHS = {
    "policy step": (PolicyObjective, "evaluate", 2),
    "critic": (FlatAdam, "step", 3),
    "checkpoint": (checkpoint_callback, "write", 2),
}
"""Function that a rank calls as it dies in a phase, and in which call."""


def run_until_killed(rank: int, phase: str, victim: int, folder: Path, died_at: Any) -> dict[str, Any]:
    """Train until a rank dies; return what the others raise and hold."""
    model = make()
    callbacks: list[BaseCallback] = [ResumableCheckpoint(folder, every=1)]

    def act() -> None:
        kill(died_at)

    if rank == victim and phase == "evaluation":
        env = VecNormalize(make_vec_env("Pendulum-v1"), training=False, norm_reward=False)
        callbacks.append(EvalCallback(env, eval_freq=40, n_eval_episodes=1, verbose=0))
        after(env, "step_wait", 5, act)
    elif rank == victim and phase == "collect":
        callbacks.append(At(40, act))
    elif rank == victim:
        after(*DEATHS[phase], act)
    updates: list[dict[str, np.ndarray]] = [state_of(model)]
    for part in ("_improve_policy", "_fit_critic"):
        record_states(model, part, updates)
    try:
        model.learn(100 * ITERATION, callback=callbacks)
    except RuntimeError as error:
        text, seconds = f"{type(error).__name__}: {error}", time.monotonic() - died_at.value
    is_whole = any(same(each, state_of(model)) for each in updates)
    return {"error": text, "seconds": seconds, "is whole": is_whole}


@pytest.mark.parametrize("phase", [*DEATHS, "collect", "evaluation"])
def test_a_killed_rank_stops_the_others_within_seconds_and_with_a_clear_message(phase, tmp_path):
    victim = 0 if phase in ("evaluation", "policy step") else 1
    n_ranks = 3 if phase == "collect" else 2
    died_at = SERVER.Value("d", 0.0)
    outcomes = [process.outcome() for process in start(n_ranks, run_until_killed, phase, victim, tmp_path, died_at)]
    assert outcomes[victim][0] == "died"
    for kind, result in (each for rank, each in enumerate(outcomes) if rank != victim):
        assert kind == "result", result
        assert "RanksPartedError" in result["error"]
        assert "has lost contact with the others" in result["error"]
        assert 0.0 < result["seconds"] < DEADLINE
        assert result["is whole"]


class EnvError(Exception):
    """Raised by an environment."""


def run_until_an_env_breaks(rank: int, all_raised: Any) -> dict[str, Any]:
    model = make()

    def act() -> None:
        raise EnvError("the simulator exploded")

    start = time.monotonic()
    with pytest.raises((EnvError, RuntimeError)) as raised:
        model.learn(10 * ITERATION, callback=At(40, act) if rank == 1 else None)
    seconds = time.monotonic() - start
    for action in (lambda: model.learn(ITERATION), make):
        with pytest.raises(RuntimeError, match="start the script again"):
            action()
    all_raised.wait(DEADLINE)  # so the other rank has not waited for this process to end
    is_finite = all(np.isfinite(value).all() for value in state_of(model).values())
    return {"error": f"{raised.typename}: {raised.value}", "seconds": seconds, "is finite": is_finite}


def test_an_error_on_one_rank_is_reported_by_the_others_and_ends_them_for_good():
    first, second = in_ranks(2, run_until_an_env_breaks, SERVER.Barrier(2))
    assert second["error"] == "EnvError: the simulator exploded"
    assert first["error"].startswith("RanksPartedError")
    assert "rank 1 ended with EnvError: the simulator exploded" in first["error"]
    assert first["seconds"] < DEADLINE
    assert first["is finite"]
    assert second["is finite"]


def run_slowly(rank: int, pause: float) -> dict[str, np.ndarray]:
    model = make()
    model.learn(2 * ITERATION, callback=At(40, lambda: time.sleep(pause * rank)))
    return state_of(model)


def test_a_slow_rank_is_waited_for_and_changes_nothing():
    slow, quick = in_ranks(2, run_slowly, 0.5), in_ranks(2, run_slowly, 0.0)
    assert same(slow[0], slow[1])
    assert same(slow[0], quick[0])


class CrashError(Exception):
    """Ends a run that will be restarted."""


def crash() -> None:
    raise CrashError


def run_in_parts(rank: int, folder: Path, stop: int | None) -> dict[str, Any]:
    """Train with checkpoints, to the end or until the first rank crashes at some step."""
    model = make()
    callbacks: list[BaseCallback] = [ResumableCheckpoint(folder, every=1, verbose=0)]
    if stop is not None and rank == 0:
        callbacks.append(At(stop, crash))
    first: list[np.ndarray] = []
    after(TRPO, "collect_rollouts", 1, lambda: first.append(np.array(model._last_obs)))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            model.learn(6 * ITERATION, callback=callbacks)
        except (CrashError, RuntimeError) as error:
            return {"error": str(error)}
    return {
        "outcome": outcome(model, []),
        "warnings": [str(each.message) for each in caught if "rank(s)" in str(each.message)],
        "updates": model._n_updates,
        "observed": model.get_vec_normalize_env().obs_rms.count,
        "first observations": first[0],
    }


def test_a_run_of_two_ranks_that_crashes_twice_ends_like_one_that_does_not_crash(tmp_path):
    whole = in_ranks(2, run_in_parts, tmp_path / "whole", None)
    pieces = tmp_path / "pieces"
    assert all("error" in result for result in in_ranks(2, run_in_parts, pieces, 70))
    assert {path.name for path in pieces.iterdir() if path.is_dir()} == {"rank-0-of-2", "rank-1-of-2"}
    assert all("error" in result for result in in_ranks(2, run_in_parts, pieces, 70))
    newest = sorted((pieces / "rank-1-of-2").glob("checkpoint-*"))[-1]
    (newest / "arrays.safetensors").write_bytes(b"")  # a checkpoint that is not intact on all ranks is skipped
    resumed = in_ranks(2, run_in_parts, pieces, None)
    for one, other in zip(whole, resumed, strict=True):
        assert one["outcome"] == other["outcome"]
        assert other["warnings"] == []


@pytest.mark.parametrize(("before", "now"), [(2, 3), (2, 1), (1, 2)])
def test_another_number_of_ranks_continues_with_a_warning(before, now, tmp_path):
    in_ranks(before, run_in_parts, tmp_path, 220 // before)
    results = in_ranks(now, run_in_parts, tmp_path, None)
    (warning,) = results[0]["warnings"]
    assert f"is of {before} rank(s), and the run continues on {now}" in warning
    for result in results:
        assert result["updates"] == results[0]["updates"] > 3
        assert result["observed"] == results[0]["observed"]
        policy = {name: value for name, value in results[0]["outcome"].items() if name.startswith("policy")}
        assert policy == {name: result["outcome"][name] for name in policy}
    first_observations = {result["first observations"].tobytes() for result in results}
    assert len(first_observations) == now  # each rank has its own episodes


def run_until_signalled(rank: int, folder: Path, victim: int) -> tuple[str | None, int]:
    checkpoint = ResumableCheckpoint(folder, every=10**6, verbose=0)
    signalled = [At(70, lambda: os.kill(os.getpid(), signal.SIGTERM))] if rank == victim else []
    model = make().learn(100 * ITERATION, callback=[checkpoint, *signalled])
    return checkpoint.stopped_by, model.num_timesteps


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


def run_with_a_failing_removal(rank: int, folder: Path) -> list[str]:
    """Train with checkpoints, which one rank fails to remove."""
    if rank == 1:
        remove = checkpoint_folder.remove

        def refuse(path: Path) -> None:
            if path.name.endswith(f"-{2 * ITERATION:012d}"):
                raise PermissionError(13, "Permission denied")
            remove(path)

        checkpoint_folder.remove = refuse
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        make().learn(5 * ITERATION, callback=ResumableCheckpoint(folder, every=2 * ITERATION, keep=1, verbose=0))
    return [str(each.message) for each in caught if "removed" in str(each.message)]


def test_a_rank_that_cannot_remove_a_checkpoint_does_not_disturb_the_others(tmp_path):
    first, second = in_ranks(2, run_with_a_failing_removal, tmp_path)
    assert first == []
    assert len(second) == 1
    assert "Permission denied" in second[0]
    there = [{int(path.name[-12:]) for path in tmp_path.glob(f"rank-{rank}-of-2/checkpoint-*")} for rank in range(2)]
    assert there[0] == {5 * ITERATION}
    assert there[1] == {2 * ITERATION, 5 * ITERATION}


def run_script(rank: int, folder: Path) -> None:
    """Do what torchrun would do, without its interpreters."""
    os.environ["TORCHELASTIC_RESTART_COUNT"] = "0"
    parallel_run.main(folder)


def test_torchrun_restarts_killed_ranks_and_the_run_ends_like_one_without_a_kill(tmp_path):
    whole, pieces = tmp_path / "whole", tmp_path / "pieces"
    whole.mkdir()
    pieces.mkdir()
    in_ranks(2, run_script, whole)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", "--max-restarts", "1"]
    script = ["--monitor-interval", "0.1", "-m", "helpers.parallel_run", str(pieces), "2"]
    result = subprocess.run([*torchrun, *script], capture_output=True, text=True, timeout=300, check=False, env=environment())
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("Continuing from") == 1
    for rank in range(2):
        assert (whole / f"outcome-{rank}.json").read_text() == (pieces / f"outcome-{rank}.json").read_text()
