"""
Tables and figures from the learning runs in ``results/learning``; trains nothing.

    python benchmarks/report.py

Tables go to ``results/learning/report.md``, figures beside it; ``study.py`` says what their intervals are.
"""

from __future__ import annotations

from typing import Any

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

REPORTED, OTHERS, TUNING = ("mujoco", "rl_zoo", "pybullet"), ("sb3_contrib", "baselines"), ("tuning", "superseded", "defaults")
PROTOCOL = (
    "The final policy plays 20 deterministic episodes for the raw rewards, in an environment seeded with 1000 + the run's "
    "seed (sb3-contrib's of MuJoCo in 5 environments, seeded from there on). Every run that was started is in a table of "
    "final returns, or in `tuning.json`."
)
BESIDE = (
    "Met is what the mean decides; where its interval holds the target, other seeds may decide otherwise. Intervals of three "
    'runs go from the least to the largest. "Earlier settings" were to be reported, and were then changed: a task that has '
    "some has had another try, on other seeds."
)
NORMALISED = (
    "sb3-contrib's means count as exact, though three runs give them; its runs for the wall-clock table, where HalfCheetah-v5 "
    "ended at half of this, are not in them."
)
CLOCK = (
    "Seed by seed, first ours, then sb3-contrib's, at most two runs at a time on a machine of two cores. "
    f"{PEER}'s seconds are the mean over its whole runs, the levels its mean returns at their end. Ours is there when its "
    "last 100 training episodes, with noise, average as much: a hard test where the level comes from evaluations without "
    "noise (Walker2d-v5's final policies then get more than that level, too). Times are read from 40 points of a run: on "
    "Ant-v5 it is the first, after 25,000 steps, where merely standing earns 1 a step. An interrupted run has no clock, and "
    f"is left out. Target: {SHARE:.2f}."
)
DEFAULTS = (
    "Mean return, standard deviation over the runs, and their number, on seeds of tuning. All else is as by default: the "
    "first column is sb3-contrib's choice (its KL of Box actions apart), the second ours, which is best or equal on the four "
    "small tasks. Shorter rollouts with a wider radius learn HalfCheetah and Walker2d faster in these 300,000 steps, and "
    "Hopper, Pendulum and LunarLander worse."
)


def effort() -> str:
    """
    Say what the results have cost.

    :return: a sentence for tuning, one for reported runs and one for those of others
    """
    kinds = (spent(stored(names).values()) for names in (TUNING, (*REPORTED, "wall_clock"), OTHERS))
    return (
        "Tuning, on other seeds: at least {} (early attempts that were killed have left no time), and about one core hour of "
        "runs whose results are lost. Reported: {}. Of other algorithms: {}.".format(*kinds)
    )


def earlier() -> Study:
    """
    Read the results of settings that were to be reported, and were then changed.

    :return: with what tells the settings from the present ones as their methods
    """
    present: dict[str, dict[str, Any]] = {row["env"]: row["settings"] for row in read(*REPORTED)}
    return Study(row | {"label": unlike(row["settings"], present[row["env"]])} for row in read("superseded"))


def published_of_ddpg() -> str:
    """
    Give DDPG's published returns, for orientation: a run of our own takes hours, and starts over when it is interrupted.

    :return: a sentence
    """
    returns = ", ".join(f"{task} {number(value)}" for task, value in DDPG.items())
    return f"DDPG's as published by Tianshou, on -v3, best evaluations within 1M steps, 10 seeds: {returns}."


def main() -> None:
    """Write the report."""
    study, side_by_side, superseded = Study(read(*REPORTED, *OTHERS)), Study(read("wall_clock")), earlier()
    timed = Study(uninterrupted(read("wall_clock")))
    compared = [env for env in study.envs(OURS, PEER) if env in MARKS]
    probabilities = {env: probability_of_improvement(study, env) for env in compared}
    sections = {
        "Against what others have published, 1M steps": (BESIDE, against(study, superseded, MARKS)),
        "Against RL Zoo's runs of sb3-contrib's TRPO": (BESIDE, against(study, superseded, RL_ZOO)),
        "All tasks together, returns divided by sb3-contrib's mean return": (NORMALISED, aggregate(study, compared)),
        "Probability of improvement": ("", improvements(probabilities)),
        "Final returns": (published_of_ddpg(), summaries(study)),
        "Final returns of the runs for the wall-clock table": ("Other seeds of the same settings.", summaries(side_by_side)),
        "Final returns of settings that were to be reported, and were then changed": (
            "What these runs showed counts as tuning.",
            summaries(superseded, "unlike the present settings"),
        ),
        "General choices for the constructor's defaults, without normalisation": (DEFAULTS, choices(Study(read("defaults")))),
        "Wall-clock time to sb3-contrib's return": (CLOCK, wall_clock(timed)),
        "What tuning and reporting took, by task": ("", efforts(stored(TUNING).values(), stored(REPORTED).values())),
    }
    pictures = {
        "Learning curves, IQM over runs and 95 % interval": "learning_curves.png",
        "Probability that a run of ours ends above one of sb3-contrib's": "improvement.png",
        "Learning curves against wall-clock time": "wall_clock.png",
    }
    draw_curves(study, [env for env in study.envs(OURS) if env in MARKS], FOLDER / "learning_curves.png")
    draw_improvement(probabilities, FOLDER / "improvement.png")
    draw_curves(timed, timed.envs(OURS, PEER), FOLDER / "wall_clock.png", against_seconds=True)
    cost = effort()
    parts = [
        f"## {title}\n\n{' '.join(filter(None, (PROTOCOL, cost, note)))}\n\n{body}\n"
        for title, (note, body) in sections.items()
    ]
    parts += [f"## {title}\n\n![{title}]({file})\n" for title, file in pictures.items()]
    (FOLDER / "report.md").write_text("# Learning results, by `python benchmarks/report.py`\n\n" + "\n".join(parts))
    print(FOLDER / "report.md")


if __name__ == "__main__":
    main()
