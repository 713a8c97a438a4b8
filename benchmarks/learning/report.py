"""
Tables and pictures of the learning runs in ``results/learning``; trains nothing.

    python -m benchmarks.learning.report

Tables go to ``results/learning/report.md``, pictures beside it; ``study.py`` defines their intervals. The page of results in
the documentation includes them. ``python -m benchmarks.report`` does the same for all other figures.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from benchmarks.learning import ppo
from benchmarks.learning.pictures import draw_curves, draw_improvement
from benchmarks.learning.published import DDPG, MARKS, RL_ZOO, SHARE
from benchmarks.learning.store import FOLDER, imported, read, read_once
from benchmarks.learning.study import OURS, PEER, Scale, Study, probability_of_improvement, uninterrupted
from benchmarks.learning.tables import (
    against,
    aggregate,
    choices,
    efforts,
    improvements,
    missed,
    number,
    slow,
    spent,
    summaries,
    unlike,
    wall_clock,
)

REPORTED, OTHERS = ("mujoco", "rl_zoo", "pybullet"), ("ppo", "baselines", "ddpg")
CONTRIB = "sb3_contrib"
TUNING = ("tuning", "superseded", "defaults", "humanoid", "dm_control_tuning")
PROTOCOL = (
    "The final policy is evaluated over 20 deterministic episodes, with raw rewards, in an environment seeded with 1000 + the "
    "run's seed (sb3-contrib's on MuJoCo in 5 environments, seeded from there on). Every run with a stored result is in a "
    "table of final returns, or in a plan of tuning."
)
BESIDE = (
    "Mean return of the final policies, with its 95 % interval; beside it, sb3-contrib's TRPO with RL Zoo's settings. "
    "A target counts as met if the mean reaches it. If the interval contains the target, other seeds may miss it.\n\n"
    '- "Earlier settings" were meant to be reported, and then changed: these tasks had another try, on other seeds. '
    "For Swimmer-v5, those of seeds 20 to 29 came after the present ones, and were no better.\n"
    "- The interval of three runs goes from the least to the largest.\n"
    "- The best means published are of any on-policy algorithm. Some were found after the targets had been set.\n"
    "- RL Zoo's single runs are of sb3-contrib's TRPO, on MuJoCo's -v3 tasks."
)
CURVES = (
    "Interquartile mean of the training return over the runs, with its 95 % interval. The legends have the numbers of "
    "runs. Of sb3-contrib's runs on Walker2d-v5, the one that ended lowest has left no curve."
)
ZOO = (
    "The targets are the returns of RL Zoo's single runs of sb3-contrib's TRPO. Columns and intervals are those of "
    "the first table."
)
NORMALIZED = (
    "Returns divided by sb3-contrib's mean return on the task. These means are taken as exact, though they come from "
    "six runs: three made earlier, and the three of the wall-clock table. On HalfCheetah-v5 the former have a mean of "
    "3,869, the latter of 1,964."
)
CLOCK = (
    "How long our runs take to reach the mean return that sb3-contrib's runs end with, as a share of the time of "
    f"sb3-contrib's whole runs. The target is {SHARE:.2f}.\n\n"
    "- Runs of both took turns on the same cores, at most two at a time on a machine with two. HalfCheetah-v5, "
    "Hopper-v5 and Ant-v5 came first, the others at a later commit.\n"
    "- A run reaches a return when the average of its last 100 training episodes, which have noise, first does. That "
    "is easy for a return from training, which rises and falls, and hard for one from evaluations without noise. On "
    "Walker2d-v5, our final policies exceed that one too when they are evaluated without noise.\n"
    "- Some of sb3-contrib's runs reach the return before they end; the column of its runs shows when.\n"
    "- Times are read from 40 points of a run. On Ant-v5 ours reach the return at the first point, after 25,000 steps: an "
    "agent that stands still earns 1 per step there.\n"
    "- Interrupted runs have no times and are left out."
)
DEFAULTS = (
    "Runs of 100,000 steps on the small tasks and 300,000 on MuJoCo's, on seeds of tuning, without normalization: "
    "mean return, standard deviation over the runs, and their number. All other settings are the defaults. The first "
    "column is sb3-contrib's choice, except for its KL of Box actions; the second is ours. Ours is better in the mean "
    "on five of seven tasks and worse on Hopper; only on Acrobot do the two differ by more than the spread of both. "
    "Shorter rollouts with a larger radius learn HalfCheetah and Walker2d faster in these runs, and Hopper, Pendulum "
    "and LunarLander worse."
)
BOUNDED = (
    "Beta-distributed and Gaussian actions on the same seeds, with the settings of `zoo_configs`, which were tuned with "
    "Gaussians. Neither has gSDE, and the Beta has no `log_std_init`. A lower `cg_damping` was tried "
    "on the short tasks. Where the tuned settings have gSDE, the reported runs "
    "with it are listed as well. Their seeds are others."
)
LATER = (
    "The reported runs were made with 0.1.0. These were made with a later version, which is faster, on seeds of their own: "
    "they show whether it learns the same. On HalfCheetah-v5 all three ended above the interval of the reported mean, so "
    "0.1.0 was run on the same seeds."
)
MINIBATCHES = (
    "Larger minibatches are fewer messages between ranks. These have 4 or 16 times as many transitions in a minibatch as "
    "the reported ones, and otherwise the same settings: what four ranks with 128 or 512 each would learn."
)


def effort() -> str:
    """
    Sum up what the results have cost.

    :return: a sentence for tuning, one for reported runs and one for other algorithms
    """
    reported = [*read_once((*REPORTED, *OTHERS, "wall_clock", "beta", "minibatches")), *imported(CONTRIB)]
    ours, others = ([row for row in reported if (row["algorithm"] == "trpo") is own] for own in (True, False))
    kinds = map(spent, (read_once(TUNING), ours, others))
    return (
        "Tuning, on other seeds: at least {} (without the time of early attempts that were killed), and about one core hour "
        "of runs whose results are lost. Reported: {}. Of other algorithms: {}.".format(*kinds)
    )


def latest() -> Study:
    """
    Read the reported results, and those of others, including sb3-contrib's from the wall-clock table.

    :return: the results
    """
    return Study(
        [*read(*REPORTED), *imported(CONTRIB), *read(*OTHERS), *(row for row in read("wall_clock") if row["label"] == PEER)]
    )


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


def sections(study: Study, chances: Mapping[str, np.ndarray]) -> dict[str, list[str]]:
    """
    Make the sections of the report.

    :param study: the results
    :param chances: probabilities of improvement by task
    :return: the paragraphs of each, by title
    """
    superseded, in_turn = earlier(), timed()
    return {
        "Missed targets": ["\n".join((missed(study, MARKS), missed(study, RL_ZOO), slow(in_turn)))],
        "Returns after 1M steps, beside published ones": [BESIDE, against(study, superseded, MARKS)],
        "Learning curves": [CURVES, picture("learning_curves")],
        "All tasks together": [NORMALIZED, aggregate(study, compared(study), Scale())],
        "Probability of improvement": [improvements(chances), picture("improvement")],
        **ppo.sections(study),
        "Wall-clock time": [CLOCK, wall_clock(in_turn), picture("wall_clock")],
        "RL Zoo's other tasks": [ZOO, against(study, superseded, RL_ZOO)],
        "Every reported run": [of_others(), summaries(study)],
        "The runs of the wall-clock table": [
            "Other seeds of the same settings; sb3-contrib's runs are in the tables above, too.",
            summaries(Study(read("wall_clock"))),
        ],
        "Settings that were meant to be reported, and then changed": [
            "What these runs showed counts as tuning.",
            summaries(superseded, "differences from the present settings"),
        ],
        "Runs of a later version": [LATER, summaries(later(), "version")],
        "A Beta distribution beside the Gaussian": [BOUNDED, summaries(beside_gsde(), "actions"), picture("beta")],
        "Larger minibatches of the critic": [MINIBATCHES, summaries(larger_minibatches(), "minibatches")],
        "Choices of the constructor's defaults": [DEFAULTS, choices(Study(read("defaults")))],
        "Cost": [effort(), efforts(read_once(TUNING), read_once(REPORTED))],
    }


def bounded() -> Study:
    """
    Read the results with Beta-distributed and with Gaussian actions.

    :return: the results; methods are distributions
    """
    return Study(read("beta"))


def beside_gsde() -> Study:
    """
    Read the same results, with the reported ones on these tasks that explore by gSDE.

    :return: the results
    """
    rows = read("beta")
    envs = {row["env"] for row in rows}
    tuned = [row for row in read(*REPORTED) if row["env"] in envs and row["settings"].get("use_sde")]
    return Study([*rows, *(row | {"label": "Gaussian, gSDE"} for row in tuned)])


def larger_minibatches() -> Study:
    """
    Read the results with larger minibatches of the critic.

    :return: the results, beside the reported ones on the same tasks
    """
    rows = read("minibatches")
    envs = {row["env"] for row in rows}
    return Study([*rows, *(row | {"label": "reported, of 128"} for row in read(*REPORTED) if row["env"] in envs)])


def later() -> Study:
    """
    Read the results of a later version.

    :return: the results, beside the reported ones on the same tasks; methods are versions
    """
    rows = [row | {"label": "the later version"} for row in read("unchanged")]
    rows += [row | {"label": "0.1.0, the same seeds"} for row in imported("unchanged_0.1.0")]
    envs = {row["env"] for row in rows}
    return Study([*rows, *(row | {"label": "0.1.0, reported"} for row in read(*REPORTED) if row["env"] in envs)])


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
    "learning_curves": "Learning curves",
    "improvement": "Probability that a run of ours ends above one of sb3-contrib's",
    "wall_clock": "Learning curves against wall-clock time",
    "beta": "Learning curves of Beta and Gaussian policies",
}
"""What each picture shows."""


def picture(name: str) -> str:
    """
    Refer to a picture.

    :param name: key of ``PICTURES``
    :return: Markdown
    """
    return f"![{PICTURES[name]}]({name}.svg)"


def text(study: Study, chances: Mapping[str, np.ndarray]) -> str:
    """
    Compose the report.

    :param study: the results
    :param chances: probabilities of improvement by task
    :return: Markdown
    """
    parts = ["# Learning results, by `python -m benchmarks.report`", PROTOCOL]
    for title, paragraphs in sections(study, chances).items():
        parts += [f"## {title}", *paragraphs]
    return "\n\n".join(parts) + "\n"


def draw(study: Study, chances: Mapping[str, np.ndarray]) -> None:
    """
    Save the pictures of the report.

    :param study: the results
    :param chances: probabilities of improvement by task
    """
    in_turn, of_bounded = timed(), bounded()
    curves, improvement, clock, beta = (FOLDER / f"{name}.svg" for name in PICTURES)
    draw_curves(study, [env for env in study.envs(OURS) if env in MARKS], curves)
    draw_improvement(chances, improvement)
    ppo.draw(study)
    draw_curves(in_turn, in_turn.envs(OURS, PEER), clock, against_seconds=True)
    if begun := of_bounded.envs():  # none before the first run has ended
        draw_curves(of_bounded, begun, beta)


def main() -> None:
    """Write the report and its plots."""
    study = latest()
    chances = probabilities(study)
    draw(study, chances)
    (FOLDER / "report.md").write_text(text(study, chances))
    print(FOLDER / "report.md")


if __name__ == "__main__":
    main()
