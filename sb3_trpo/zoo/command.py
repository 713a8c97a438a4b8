"""The command line of ``sb3-trpo`` and ``python -m sb3_trpo.zoo``: choose a script and run it."""

from __future__ import annotations

import argparse
import importlib
import os
import runpy
import sys
from contextlib import ExitStack, redirect_stdout
from pathlib import Path

from sb3_trpo.constrained import velocity_tasks  # noqa: F401  # registers its environments
from sb3_trpo.extras import ZOO, MissingExtraError, needs, require
from sb3_trpo.zoo import memory_tasks  # noqa: F401  # the same

SCRIPTS = {
    "train": "train an agent; with -optimize, search for hyperparameters",
    "report": "evaluate a run, draw its learning curve and its log, list its files",
    "enjoy": "watch a trained agent in a window; with --no-render, run it without one",
    "record_video": "record a video of a trained agent",
    "record_training": "record videos of a run's checkpoints and join them",
    "plot_train": "plot what runs collected while they trained",
    "all_plots": "plot the evaluations of several algorithms and environments, and tabulate them",
    "plot_from_file": "plot what all_plots has saved",
    "push_to_hub": "upload a trained agent to the Hugging Face hub",
    "load_from_hub": "download an agent from there; unpickling it can run any code",
}
"""What each script does; all but ``report`` are RL Zoo's."""
PLOTS = ("plot_train", "all_plots", "plot_from_file")
"""RL Zoo's scripts that are functions of ``rl_zoo3.plots``; the others are modules."""
PLAYING = ("enjoy", "record_video", "push_to_hub")
"""Scripts that load a model and let it act."""
LIBRARIES = {"enjoy": "rl_zoo3.load_from_hub", "record_video": "moviepy", "record_training": "moviepy"}
"""Libraries that a script imports only after it has started to work."""


def main() -> None:
    """Run the script that the first argument names, with the other arguments."""
    script = parse()
    with needs(*ZOO):  # not before: RL Zoo takes seconds, and --help should be quick
        from sb3_trpo.zoo.patches import install, replaced
    with ExitStack() as stack:
        stack.enter_context(replaced(sys, "argv", [f"{program()} {script}", *sys.argv[2:]]))
        if int(os.environ.get("RANK", "0")) > 0:  # the first rank prints
            stack.enter_context(redirect_stdout(stack.enter_context(open(os.devnull, "w"))))
        stack.enter_context(install(playing=script in PLAYING))
        try:
            run(script)
        except MissingExtraError as error:
            sys.exit(str(error))


def program() -> str:
    """
    Return what the user typed to get here, for messages.

    :return: the command without its arguments
    """
    return "sb3-trpo" if Path(sys.argv[0]).stem == "sb3-trpo" else "python -m sb3_trpo.zoo"


def parse() -> str:
    """
    Read the name of a script from the command line.

    :return: a key of ``SCRIPTS``
    """
    parser = argparse.ArgumentParser(
        program(),
        usage="%(prog)s SCRIPT [ARGUMENT ...]",
        description="RL Zoo's scripts with TRPO. SCRIPT --help lists the arguments of one.",
        epilog="\n".join(["scripts:", *(f"  {script:16} {what}" for script, what in SCRIPTS.items())]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("script", choices=SCRIPTS, help=argparse.SUPPRESS)
    if len(sys.argv) < 2:
        parser.print_help(sys.stderr)
        sys.exit(2)
    script: str = parser.parse_args(sys.argv[1:2]).script
    return script


def run(script: str) -> None:
    """
    Run a script with the arguments in ``sys.argv``.

    :param script: a key of ``SCRIPTS``
    :raises MissingExtraError: if a library is missing that it needs
    """
    if script in LIBRARIES:
        require(*ZOO, LIBRARIES[script])
    if script == "report":
        from sb3_trpo.zoo.reporting import report

        report()
    elif script in PLOTS:
        with needs(*ZOO):
            plots = importlib.import_module("rl_zoo3.plots")
        getattr(plots, script)()
    else:
        runpy.run_module(f"rl_zoo3.{script}", run_name="__main__")  # its imports find the replacements
