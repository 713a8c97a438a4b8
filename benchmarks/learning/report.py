"""
Tables and plots of the learning runs in ``results/learning``; trains nothing.

    python -m benchmarks.learning.report

Tables go to ``results/learning/report.md``, plots beside it; ``study.py`` defines their intervals.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from benchmarks.learning.pictures import draw_curves, draw_improvement
from benchmarks.learning.published import DDPG, MARKS, RL_ZOO, SHARE
from benchmarks.learning.store import FOLDER, read, stored
from benchmarks.learning.study import OURS, PEER, Study, probability_of_improvement, uninterrupted
from benchmarks.learning.tables import (
    against,
    aggregate,
    choices,
    efforts,
    improvements,
    number,
    spent,
    summaries,
    unlike,
    wall_clock,
)

REPORTED, OTHERS = ("mujoco", "rl_zoo", "pybullet"), ("sb3_contrib", "baselines", "ddpg")
TUNING = ("tuning", "superseded", "defaults")
PROTOCOL = (
    "The final policy is evaluated over 20 deterministic episodes, with raw rewards, in an environment seeded with 1000 + the "
    "run's seed (sb3-contrib's on MuJoCo in 5 environments, seeded from there on). Every run with a stored result is in a "
    "table of final returns, or in `tuning.json`."
)
BESIDE = (
    "A target counts as met if the mean reaches it; if the interval contains the target, other seeds may miss it. Intervals "
    'of three runs go from the least to the largest. "Earlier settings" were meant to be reported, and then changed: these '
    "tasks had another try, on other seeds. For Swimmer-v5, those of seeds 20 to 29 came after the present ones, and were no "
    "better. RL Zoo's single runs of MuJoCo's tasks are on -v3."
)
NORMALIZED = (
    "sb3-contrib's means are taken as exact, though they come from six runs: three made earlier, and the three for the "
    "wall-clock table (on HalfCheetah-v5 the former have a mean of 3,869, the latter of 1,964)."
)
CLOCK = (
    "Our runs and sb3-contrib's took turns on the same cores, at most two at a time on a machine with two; HalfCheetah-v5, "
    "Hopper-v5 and Ant-v5 first, the others at a later commit. A level is the mean return that sb3-contrib's runs end with, "
    "its seconds are the mean of its whole runs; some of these pass the level earlier (third column from the right). A run "
    "reaches the level when the average of its last 100 training episodes, which have noise, first does. That is easy if the "
    "level is a training return, which rises and falls, and hard if it comes from evaluations without noise (Walker2d-v5's "
    "final policies exceed that level, too, when they are evaluated without noise). Times are read from 40 points of a run: "
    "on Ant-v5 it is the first, after 25,000 steps, where merely standing earns 1 per step. Interrupted runs have no times "
    f"and are left out. Target: {SHARE:.2f}."
)
DEFAULTS = (
    "Mean return, standard deviation over the runs, and their number, on tuning seeds. All other settings are the defaults. "
    "The first column is sb3-contrib's choice (except for its KL of Box actions), the second ours, which is best or equal on "
    "the four small tasks; only on Acrobot do the two differ by more than the spread of both. Shorter rollouts with a larger "
    "radius learn HalfCheetah and Walker2d faster in these 300,000 steps, and Hopper, Pendulum and LunarLander worse."
)


def effort() -> str:
    """
    Sum up what the results have cost; the README has the same text.

    :return: a sentence for tuning, one for reported runs and one for other algorithms
    """
    reported = stored((*REPORTED, *OTHERS, "wall_clock")).values()
    ours, others = ([row for row in reported if (row["algorithm"] == "trpo") is own] for own in (True, False))
    kinds = map(spent, (stored(TUNING).values(), ours, others))
    return (
        "Tuning, on other seeds: at least {} (without the time of early attempts that were killed), and about one core hour "
        "of runs whose results are lost. Reported: {}. Of other algorithms: {}.".format(*kinds)
    )


def latest() -> Study:
    """
    Read the reported results, and those of others, including sb3-contrib's from the wall-clock table.

    :return: the results
    """
    return Study([*read(*REPORTED, *OTHERS), *(row for row in read("wall_clock") if row["label"] == PEER)])


def compared(study: Study) -> list[str]:
    """
    List the tasks on which we compare with sb3-contrib.

    :param study: the results
    :return: tasks of MuJoCo on which both have runs
    """
    return [env for env in study.envs(OURS, PEER) if env in MARKS]


def earlier() -> Study:
    """
    Read the results of settings that were meant to be reported, and then changed.

    :return: the results; methods are named by the differences from the present settings
    """
    present: dict[str, dict[str, Any]] = {row["env"]: row["settings"] for row in read(*REPORTED)}
    return Study(row | {"label": unlike(row["settings"], present[row["env"]])} for row in read("superseded"))


def of_others() -> str:
    """
    Describe the runs of other algorithms. DDPG's returns are published ones: its runs take hours, and do not resume.

    :return: two sentences
    """
    returns = ", ".join(f"{task} {number(value)}" for task, value in DDPG.items())
    return (
        "For orientation, PPO and A2C were run on five of MuJoCo's tasks; sb3-contrib's TRPO on these, CartPole and both "
        "LunarLanders. DDPG's returns as published by Tianshou, on -v3, best evaluation within 1M steps, 10 seeds: "
        f"{returns}."
    )


def sections(study: Study, chances: Mapping[str, np.ndarray]) -> dict[str, tuple[str, str]]:
    """
    Make the tables of the report.

    :param study: the results
    :param chances: probabilities of improvement by task
    :return: by title, each with a note
    """
    superseded = earlier()
    single_runs = against(study, superseded, RL_ZOO)
    return {
        "Against what others have published, 1M steps": (BESIDE, against(study, superseded, MARKS)),
        "Against RL Zoo's runs of sb3-contrib's TRPO": ("The notes on the table above hold here, too.", single_runs),
        "All tasks together, returns divided by sb3-contrib's mean return": (NORMALIZED, aggregate(study, compared(study))),
        "Probability of improvement": ("", improvements(chances)),
        "Final returns": (of_others(), summaries(study)),
        "Final returns of the runs for the wall-clock table": (
            "Other seeds of the same settings; sb3-contrib's runs are in the tables above, too.",
            summaries(Study(read("wall_clock"))),
        ),
        "Final returns of settings that were meant to be reported, and then changed": (
            "What these runs showed counts as tuning.",
            summaries(superseded, "differences from the present settings"),
        ),
        "Choices of the constructor's defaults, without normalization": (DEFAULTS, choices(Study(read("defaults")))),
        "Wall-clock time to sb3-contrib's return": (CLOCK, wall_clock(timed())),
        "Cost of tuning and reporting, by task": ("", efforts(stored(TUNING).values(), stored(REPORTED).values())),
    }


def timed() -> Study:
    """
    Read the results for the wall-clock table.

    :return: results of runs that took turns on the same cores, and were never interrupted
    """
    return Study(uninterrupted(read("wall_clock")))


def probabilities(study: Study) -> dict[str, np.ndarray]:
    """
    Estimate the probability that a run of ours ends above one of sb3-contrib's.

    :param study: the results
    :return: probability and 95 % interval by task, each of shape ``(3,)``
    """
    return {env: probability_of_improvement(study, env) for env in compared(study)}


PICTURES = {
    "Learning curves, IQM over runs and 95 % interval": (
        "learning_curves.png",
        "Numbers of runs are in the legends; of sb3-contrib's runs on Walker2d-v5, the one that ended lowest has no curve.",
    ),
    "Probability that a run of ours ends above one of sb3-contrib's": ("improvement.png", "As in the table above."),
    "Learning curves against wall-clock time": ("wall_clock.png", "The runs of the table above."),
}


def text(study: Study, chances: Mapping[str, np.ndarray]) -> str:
    """
    Compose the report.

    :param study: the results
    :param chances: probabilities of improvement by task
    :return: Markdown
    """
    parts = ["# Learning results, by `python -m benchmarks.learning.report`", PROTOCOL, effort()]
    for title, (note, body) in sections(study, chances).items():
        parts += [f"## {title}", note, body]
    for title, (file, note) in PICTURES.items():
        parts += [f"## {title}", note, f"![{title}]({file})"]
    return "\n\n".join(filter(None, parts)) + "\n"


def draw(study: Study, chances: Mapping[str, np.ndarray]) -> None:
    """
    Save the plots of the report.

    :param study: the results
    :param chances: probabilities of improvement by task
    """
    in_turn = timed()
    curves, improvement, clock = (FOLDER / file for file, _ in PICTURES.values())
    draw_curves(study, [env for env in study.envs(OURS) if env in MARKS], curves)
    draw_improvement(chances, improvement)
    draw_curves(in_turn, in_turn.envs(OURS, PEER), clock, against_seconds=True)


def main() -> None:
    """Write the report and its plots."""
    study = latest()
    chances = probabilities(study)
    draw(study, chances)
    (FOLDER / "report.md").write_text(text(study, chances))
    print(FOLDER / "report.md")


if __name__ == "__main__":
    main()
