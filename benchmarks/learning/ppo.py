"""The section of the report on PPO: SB3's, with RL Zoo's settings, beside ours."""

from __future__ import annotations

import json

from benchmarks.learning.pictures import draw_curves, draw_improvement, draw_profile
from benchmarks.learning.plans import read_plan, runs_of
from benchmarks.learning.random_policy import FILE
from benchmarks.learning.store import FOLDER, read
from benchmarks.learning.study import OURS, PPO, Scale, Study, normalized, probability_of_improvement, uninterrupted
from benchmarks.learning.tables import aggregate, beside, improvements, lengths

INTRODUCTION = (
    "SB3's PPO with the settings that RL Zoo ships for each task, beside the runs above: the same number of steps, the same "
    "evaluation. Means with the least and the largest run; the last column is the share of "
    "pairs of runs in which ours ended higher."
)
TOGETHER = (
    "Over the tasks on which both have ten runs. A normalized return is 0 for a policy that acts at random "
    f"(`{FILE}`), and 1 for the mean of PPO's runs."
)
CLOCK = "How long a run took, in turn on the same cores, two at a time, one thread each: median of seconds (number of runs)."
PICTURES = {
    "ppo_profile": "Performance profiles of ours and PPO",
    "ppo_improvement": "Probability that a run of ours ends above one of PPO's",
    "ppo_clock": "Learning curves of ours and PPO against wall-clock time",
}
"""What each picture shows."""


def tasks(study: Study) -> list[str]:
    """
    List the tasks on which both have all their runs.

    :param study: the results
    :return: environment IDs
    """
    planned = [run.env for run in runs_of(read_plan("ppo"))]
    counts = {env: planned.count(env) for env in planned}
    return [env for env, n in counts.items() if len(study.scores(env, PPO)) == len(study.scores(env, OURS)) == n]


def scale() -> Scale:
    """
    Measure by PPO, from a policy that acts at random.

    :return: what counts as 0 and 1
    """
    return Scale(PPO, json.loads((FOLDER / FILE).read_text())["returns"])


def in_turn() -> Study:
    """
    Read the runs whose times can be compared.

    :return: results of one machine, without those of runs that were interrupted
    """
    return Study(uninterrupted(read("ppo_clock")))


def sections(study: Study) -> dict[str, list[str]]:
    """
    Make the section.

    :param study: the results
    :return: its paragraphs by title
    """
    paragraphs = [INTRODUCTION, beside(study, study.envs(OURS, PPO), PPO)]
    if both := tasks(study):
        chances = {env: probability_of_improvement(study, env, PPO) for env in both}
        paragraphs += [TOGETHER, aggregate(study, both, scale()), improvements(chances, PPO)]
        paragraphs += [f"![{PICTURES[name]}]({name}.svg)" for name in ("ppo_profile", "ppo_improvement")]
    if (timed := in_turn()).envs(OURS, PPO):
        paragraphs += [CLOCK, lengths(timed, PPO), f"![{PICTURES['ppo_clock']}](ppo_clock.svg)"]
    return {"Beside PPO": paragraphs}


def draw(study: Study) -> None:
    """
    Save the pictures of the section.

    :param study: the results
    """
    profile, improvement, clock = (FOLDER / f"{name}.svg" for name in PICTURES)
    if both := tasks(study):
        draw_profile({method: normalized(study, both, method, scale()) for method in (OURS, PPO)}, profile)
        draw_improvement({env: probability_of_improvement(study, env, PPO) for env in both}, improvement, PPO)
    if envs := (timed := in_turn()).envs(OURS, PPO):
        draw_curves(timed, envs, clock, against_seconds=True)
