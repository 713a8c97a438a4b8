"""
Tables and figures from the learning runs in ``results/learning``; trains nothing.

    python benchmarks/report.py

Tables go to ``results/learning/report.md``, figures beside it; ``study.py`` says what their intervals are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from learning_pictures import draw_curves, draw_improvement
from published import DDPG, MARKS, RL_ZOO, SHARE
from store import FOLDER, read, stored
from study import OURS, PEER, Study, probability_of_improvement, uninterrupted
from tables import (
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
    "The final policy plays 20 deterministic episodes for the raw rewards, in an environment seeded with 1000 + the run's "
    "seed (sb3-contrib's of MuJoCo in 5 environments, seeded from there on). Every run whose result was kept is in a table of "
    "final returns, or in `tuning.json`."
)
BESIDE = (
    "Met is what the mean decides; where its interval holds the target, other seeds may decide otherwise. Intervals of "
    'three runs go from the least to the largest. "Earlier settings" were to be reported, and were then changed: a task '
    "that has some has had another try, on other seeds. Of Swimmer-v5's, those of seeds 20 to 29 came after the present "
    "ones, and were no better. RL Zoo's single runs of MuJoCo's tasks are -v3."
)
NORMALISED = (
    "sb3-contrib's means count as exact, though six runs give them: three made before, and the three for the wall-clock "
    "table (of HalfCheetah-v5 the first have a mean of 3,869, the others of 1,964)."
)
CLOCK = (
    "Ours and sb3-contrib's in turn on the same cores, at most two runs at a time on a machine of two; HalfCheetah-v5, "
    "Hopper-v5 and Ant-v5 first, the others at a later commit. Levels are the means of what sb3-contrib's runs end with, "
    "its seconds the mean over its whole runs; some of them pass the level earlier (third column from the right). A "
    "run is there when its last 100 training episodes, with noise, first average as much: easy where the level is a "
    "training return, which rises and falls, and hard where it comes from evaluations without noise (Walker2d-v5's final "
    "policies then get more than that level, too). Times are read from 40 points of a run: on Ant-v5 it is the first, "
    "after 25,000 steps, where merely standing earns 1 a step. An interrupted run has no clock, and is left out. Target: "
    f"{SHARE:.2f}."
)
DEFAULTS = (
    "Mean return, standard deviation over the runs, and their number, on seeds of tuning. All else is as by default: the "
    "first column is sb3-contrib's choice (its KL of Box actions apart), the second ours, which is best or equal on the "
    "four small tasks; but only on Acrobot do the two differ by more than the spread of both. Shorter rollouts with a wider "
    "radius learn HalfCheetah and Walker2d faster in these 300,000 steps, and Hopper, Pendulum and LunarLander worse."
)


def effort() -> str:
    """
    Say what the results have cost.

    :return: a sentence for tuning, one for reported runs and one for those of others
    """
    reported = stored((*REPORTED, *OTHERS, "wall_clock")).values()
    ours, others = ([row for row in reported if (row["algorithm"] == "trpo") is own] for own in (True, False))
    kinds = map(spent, (stored(TUNING).values(), ours, others))
    return (
        "Tuning, on other seeds: at least {} (early attempts that were killed have left no time), and about one core hour of "
        "runs whose results are lost. Reported: {}. Of other algorithms: {}.".format(*kinds)
    )


def latest() -> Study:
    """
    Read the results that are reported, and those of others: sb3-contrib's for the wall-clock table, too.

    :return: by task and method
    """
    return Study([*read(*REPORTED, *OTHERS), *(row for row in read("wall_clock") if row["label"] == PEER)])


def compared(study: Study) -> list[str]:
    """
    List the tasks on which we compare with sb3-contrib.

    :param study: the results
    :return: MuJoCo's that both have been tried on
    """
    return [env for env in study.envs(OURS, PEER) if env in MARKS]


def earlier() -> Study:
    """
    Read the results of settings that were to be reported, and were then changed.

    :return: with what tells the settings from the present ones as their methods
    """
    present: dict[str, dict[str, Any]] = {row["env"]: row["settings"] for row in read(*REPORTED)}
    return Study(row | {"label": unlike(row["settings"], present[row["env"]])} for row in read("superseded"))


def of_others() -> str:
    """
    Say what others were run on, and give DDPG's published returns: a run of it takes hours, and does not go on after a kill.

    :return: two sentences
    """
    returns = ", ".join(f"{task} {number(value)}" for task, value in DDPG.items())
    return (
        "For orientation PPO and A2C, on five of MuJoCo's tasks; sb3-contrib's TRPO on these, CartPole and both "
        "LunarLanders. DDPG's as published by Tianshou, on -v3, best evaluations within 1M steps, 10 seeds: "
        f"{returns}."
    )


def sections(study: Study, chances: Mapping[str, np.ndarray]) -> dict[str, tuple[str, str]]:
    """
    Make the tables of the report.

    :param study: the results
    :param chances: of a run of ours to be the better one, by task
    :return: by title, each with what is to be known of it
    """
    superseded = earlier()
    return {
        "Against what others have published, 1M steps": (BESIDE, against(study, superseded, MARKS)),
        "Against RL Zoo's runs of sb3-contrib's TRPO": (BESIDE, against(study, superseded, RL_ZOO)),
        "All tasks together, returns divided by sb3-contrib's mean return": (NORMALISED, aggregate(study, compared(study))),
        "Probability of improvement": ("", improvements(chances)),
        "Final returns": (of_others(), summaries(study)),
        "Final returns of the runs for the wall-clock table": (
            "Other seeds of the same settings; sb3-contrib's are in the tables above, too.",
            summaries(Study(read("wall_clock"))),
        ),
        "Final returns of settings that were to be reported, and were then changed": (
            "What these runs showed counts as tuning.",
            summaries(superseded, "unlike the present settings"),
        ),
        "General choices for the constructor's defaults, without normalisation": (DEFAULTS, choices(Study(read("defaults")))),
        "Wall-clock time to sb3-contrib's return": (CLOCK, wall_clock(timed())),
        "What tuning and reporting took, by task": ("", efforts(stored(TUNING).values(), stored(REPORTED).values())),
    }


def timed() -> Study:
    """
    Read the results that tell times.

    :return: of runs that were made side by side, and never interrupted
    """
    return Study(uninterrupted(read("wall_clock")))


def probabilities(study: Study) -> dict[str, np.ndarray]:
    """
    Estimate how likely a run of ours is the better one.

    :param study: the results
    :return: by task
    """
    return {env: probability_of_improvement(study, env) for env in compared(study)}


PICTURES = {
    "Learning curves, IQM over runs and 95 % interval": (
        "learning_curves.png",
        "As many runs as the legends say: of sb3-contrib's on Walker2d-v5, the one that ended lowest has left no curve.",
    ),
    "Probability that a run of ours ends above one of sb3-contrib's": ("improvement.png", "As in the table above."),
    "Learning curves against wall-clock time": ("wall_clock.png", "The runs of the table above."),
}


def text(study: Study, chances: Mapping[str, np.ndarray]) -> str:
    """
    Write the report.

    :param study: the results
    :param chances: of a run of ours to be the better one, by task
    :return: Markdown
    """
    cost = effort()
    parts = [
        f"## {title}\n\n{' '.join(filter(None, (PROTOCOL, cost, note)))}\n\n{body}\n"
        for title, (note, body) in sections(study, chances).items()
    ]
    parts += [f"## {title}\n\n{note}\n\n![{title}]({file})\n" for title, (file, note) in PICTURES.items()]
    return "# Learning results, by `python benchmarks/report.py`\n\n" + "\n".join(parts)


def draw(study: Study, chances: Mapping[str, np.ndarray]) -> None:
    """
    Draw the pictures of the report.

    :param study: the results
    :param chances: of a run of ours to be the better one, by task
    """
    side_by_side = timed()
    curves, improvement, clock = (FOLDER / file for file, _ in PICTURES.values())
    draw_curves(study, [env for env in study.envs(OURS) if env in MARKS], curves)
    draw_improvement(chances, improvement)
    draw_curves(side_by_side, side_by_side.envs(OURS, PEER), clock, against_seconds=True)


def main() -> None:
    """Write the report, with its pictures."""
    study = latest()
    chances = probabilities(study)
    draw(study, chances)
    (FOLDER / "report.md").write_text(text(study, chances))
    print(FOLDER / "report.md")


if __name__ == "__main__":
    main()
