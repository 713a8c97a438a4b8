"""RL Zoo's experiment manager for our algorithms: settings, schedules, runs that resume, and runs that ranks share."""

from __future__ import annotations

import argparse
import json
import re
import sys
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from numbers import Real
from pathlib import Path
from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import CSVOutputFormat
from stable_baselines3.common.utils import LinearSchedule, get_device
from stable_baselines3.common.vec_env import VecEnv

from sb3_trpo.checkpoint import ResumableCheckpoint
from sb3_trpo.checkpoint.run_folder import checkpoints_in, folders_of_first_ranks, sole_owner
from sb3_trpo.extras import ZOO, needs
from sb3_trpo.parallel.distributed import connect
from sb3_trpo.parallel.first_rank import callbacks_of_other_ranks
from sb3_trpo.zoo.algorithms import ALGORITHMS, config_file

with needs(*ZOO):
    from rl_zoo3 import hyperparams_opt
    from rl_zoo3.exp_manager import ExperimentManager as RlZooManager
    from rl_zoo3.utils import SimpleLinearSchedule

SCHEDULES = ("learning_rate", "target_kl", "ent_coef", "max_state_kl")
"""Settings that may be given as ``lin_<first value>`` or ``lin_<first value>_<last value>``."""
NOTE = "rl_zoo.json"
"""File beside checkpoints with the log folder and the seed of their run."""


def schedule(name: str, text: str) -> Callable[[float], float]:
    """
    Read a linear schedule.

    :param name: name of the setting
    :param text: ``lin_0.04`` falls from 0.04 to 0 over the run, ``lin_0.04_0.01`` to 0.01
    :return: the schedule
    :raises ValueError: if the text is another
    """
    numbers = text.removeprefix("lin_").split("_")
    with suppress(ValueError):
        if len(numbers) == 1:
            return SimpleLinearSchedule(float(numbers[0]))
        if len(numbers) == 2:
            return LinearSchedule(float(numbers[0]), float(numbers[1]), 1.0)
    raise ValueError(f"{name} is {text!r}, but a schedule is lin_FIRST or lin_FIRST_LAST, such as lin_0.04_0.01.")


class ExperimentManager(RlZooManager):
    """RL Zoo's manager with our settings and schedules; resumes runs that have checkpoints, and lets ranks share a run."""

    def __init__(self, args: argparse.Namespace, algo: str, *rest: Any, **kwargs: Any) -> None:
        if kwargs.get("config") is None and algo in ALGORITHMS:
            kwargs["config"] = str(config_file(algo))
        if kwargs.get("trial_id") is not None:
            kwargs["trial_id"] = TrialNumber(kwargs["trial_id"])
        super().__init__(args, algo, *rest, **kwargs)
        if self.trial_id is not None and not (self.storage and self.study_name):
            raise ValueError("--trial-id needs the --storage and the --study-name of a search.")
        self._communicator = connect(None, get_device(self.device))
        if self._communicator.size > 1:
            self._share_run()

    def load_trial(self, storage: str, study_name: str, trial_id: int | None = None, convert: bool = True) -> dict[str, Any]:
        """
        Read the settings of a search's trial.

        :param storage: where the search is stored
        :param study_name: its name there
        :param trial_id: number of the trial, ``None`` for the best
        :param convert: whether to convert what was sampled to keywords
        :return: the settings
        :raises ValueError: if there is no such study or trial
        """
        try:
            sampled: dict[str, Any] = super().load_trial(storage, study_name, trial_id, convert=False)
        except (KeyError, IndexError) as error:
            trial = f"trial {trial_id} in the " if isinstance(error, IndexError) else ""
            raise ValueError(f"The storage has no {trial}study {study_name!r}: check --study-name and --trial-id.") from error
        return hyperparams_opt.HYPERPARAMS_CONVERTER[self.algo](sampled) if convert else sampled

    def _share_run(self) -> None:
        """Use the first rank's folder and seed: on each rank RL Zoo chooses the first free folder and a random seed."""
        if self.optimize_hyperparameters:
            raise ValueError(
                "Ranks share one run, and a search makes many: start it without a launcher, in as many processes as you like "
                "with one --storage."
            )
        self.save_path, self.params_path, self.seed = self._communicator.broadcast_object(
            (self.save_path, self.params_path, self.seed)
        )
        self.args.seed = self.seed
        rank, n_ranks = self._communicator.rank, self._communicator.size
        self.vec_env_class = partial(envs_of_rank, self.vec_env_class, rank, n_ranks)  # type: ignore[assignment]  # only called

    def create_envs(self, n_envs: int, eval_env: bool = False, no_log: bool = False) -> VecEnv:
        """
        Create this rank's environments. They are numbered across all ranks, so that Monitor files and seeds differ.

        :param n_envs: number of environments of this rank
        :param eval_env: whether they are for evaluation
        :param no_log: whether Monitor writes no files
        :return: the environments
        """
        envs: VecEnv = super().create_envs(n_envs * self._communicator.size, eval_env, no_log)
        return envs

    def learn(self, model: BaseAlgorithm) -> None:
        """
        Train. Ranks other than the first leave out the callbacks that are for the first one only.

        :param model: the model to train
        """
        self.callbacks = [*self.callbacks, ProgressFile(self.save_path)]
        if not self._communicator.is_first:
            self.callbacks = callbacks_of_other_ranks(self.callbacks)
        super().learn(model)

    def save_trained_model(self, model: BaseAlgorithm) -> None:
        """
        Save the model on the first rank.

        :param model: the trained model
        """
        if self._communicator.is_first:
            super().save_trained_model(model)

    def _save_config(self, saved_hyperparams: dict[str, Any]) -> None:
        if self._communicator.is_first:
            super()._save_config(saved_hyperparams)

    @staticmethod
    def _preprocess_schedules(hyperparams: dict[str, Any]) -> dict[str, Any]:
        texts = {name: hyperparams[name] for name in SCHEDULES if str(hyperparams.get(name)).startswith("lin_")}
        rest = {name: value for name, value in hyperparams.items() if name not in texts}
        return RlZooManager._preprocess_schedules(rest) | {name: schedule(name, text) for name, text in texts.items()}

    def _preprocess_hyperparams(self, hyperparams: dict[str, Any]) -> Any:
        processed = super()._preprocess_hyperparams(hyperparams)
        checkpoints = [callback for callback in processed[2] if isinstance(callback, ResumableCheckpoint)]
        if self.optimize_hyperparameters:
            if checkpoints:
                self._leave_checkpoints_out()
            return processed
        for checkpoint in checkpoints:
            if "{seed}" in str(checkpoint.folder) and not is_seed_given():
                raise ValueError(
                    f"folder is {checkpoint.folder}, but without a seed each start would have another folder: give --seed"
                )
            self._continue_run(checkpoint.folder_of(self.env_name.gym_id, self.seed))
        return processed

    def _leave_checkpoints_out(self) -> None:
        """Give a search's trials no checkpoints: they are short, and would share one folder."""
        specified = self.specified_callbacks if isinstance(self.specified_callbacks, list) else [self.specified_callbacks]
        self.specified_callbacks = [each for each in specified if ResumableCheckpoint.__name__ not in str(each)]

    def _continue_run(self, folder: Path) -> None:
        """Use the log folder and the seed of the run that has left checkpoints in a folder; RL Zoo would choose new ones."""
        name, seed = self._communicator.broadcast_object(self._run_in(folder) if self._communicator.is_first else ("", 0))
        if seed != self.seed:
            self.seed = self.args.seed = seed
            print(f"Seed of the resumed run: {seed}")
        run = Path(self.save_path).with_name(name)
        self.save_path, self.params_path = str(run), str(run / self.env_name)

    def _run_in(self, folder: Path) -> tuple[str, int]:
        """Read the name and seed of the run that a folder of checkpoints belongs to, or write down this run's."""
        note, name, seed = folder / NOTE, Path(self.save_path).name, self.seed
        with sole_owner(folder):  # first, since another process may be writing to the log of that run
            if note.is_file() and any(map(checkpoints_in, folders_of_first_ranks(folder).values())):
                noted = json.loads(note.read_text())
                if re.fullmatch(rf"{re.escape(self.env_name)}_\d+", noted["run"]):  # a path could lead out of the log folder
                    name = noted["run"]
                seed = seed if is_seed_given() else int(noted["seed"])
            else:
                note.write_text(json.dumps({"run": name, "seed": seed}))
        return name, seed


class TrialNumber(int):
    """A number that is true even if it is 0: RL Zoo takes a false one for none, and would train with the default settings."""

    def __bool__(self) -> bool:
        return True


class ProgressFile(BaseCallback):
    """
    Write the numbers of the log to ``progress.csv`` too, in SB3's CSV format, for the script ``report``.

    Nobody asked for this file, so nothing that goes wrong with it ends a run.

    :param folder: folder of the run
    """

    first_rank_only = True

    def __init__(self, folder: str) -> None:
        super().__init__()
        self._file = str(Path(folder) / "progress.csv")

    def _on_training_start(self) -> None:
        try:
            log = ScalarFile(self._file)
        except OSError as error:
            warnings.warn(f"There will be no dashboard of this run: {error}", stacklevel=2)
        else:
            self.logger.output_formats.insert(0, log)  # a checkpoint knows it by its place, wherever else the log goes

    def _on_step(self) -> bool:
        return True

    def _on_training_end(self) -> None:
        formats = self.logger.output_formats
        for log in [each for each in formats if isinstance(each, ScalarFile)]:  # none the second time that RL Zoo ends it
            formats.remove(log)
            log.close()


class ScalarFile(CSVOutputFormat):
    """SB3's CSV format, of numbers alone: it has no way to write a tensor or a picture. It ends when it cannot be written."""

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        """Write the numbers of a row, including those that other formats leave out."""
        numbers = {key: value for key, value in key_values.items() if isinstance(value, Real)}
        if self.file.closed:
            return
        try:
            super().write(numbers, dict.fromkeys(numbers, ()))
        except OSError as error:
            warnings.warn(f"The dashboard of this run will end here: {error}", stacklevel=2)
            self.close()

    def close(self) -> None:
        """Close the file; what could not be written is lost."""
        with suppress(OSError):
            super().close()


def envs_of_rank(
    make: Callable[..., VecEnv], rank: int, n_ranks: int, env_fns: list[Callable[[], Any]], **kwargs: Any
) -> VecEnv:
    """
    Create one rank's share of the environments of all ranks.

    :param make: the class of the vectorized environment
    :param rank: number of the rank
    :param n_ranks: number of ranks
    :param env_fns: functions that create one environment each, equally many for each rank
    :param kwargs: further keywords of the class
    :return: the environments
    """
    n_envs = len(env_fns) // n_ranks
    return make(env_fns[rank * n_envs : (rank + 1) * n_envs], **kwargs)


def is_seed_given() -> bool:
    """
    Check whether the command line has a seed: by now RL Zoo has replaced a missing one by a random number.

    :return: whether there is one; for RL Zoo a negative seed is none
    """
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--seed", type=int, default=-1)
    known, _ = parser.parse_known_args(sys.argv[1:])
    return int(known.seed) >= 0
