"""The commands ``sb3-trpo`` and ``python -m sb3_trpo.zoo``: exit code 0 for success, 2 for wrong arguments, else 1."""

import dis
import os
import sys

from sb3_trpo.extras import MissingExtraError

TRACEBACK = "SB3_TRPO_TRACEBACK"
"""Environment variable that asks for the traceback of every error."""
SPEAKS_TO_USERS = ("sb3_trpo", "rl_zoo3", "huggingface_sb3", "__main__")
"""Packages that explain to users what to change, by errors that they raise; ``__main__`` is a script of RL Zoo."""


def main() -> None:
    """Run a script. Errors that tell the user what to change end it in a sentence, all others in a traceback."""
    try:
        from sb3_trpo.zoo.command import main as run, program

        run()
    except MissingExtraError as error:
        sys.exit(str(error))
    except Exception as error:
        if TRACEBACK in os.environ or not is_for_users(error):
            raise
        sys.exit(f"{program()}: error: {error}\nWith the environment variable {TRACEBACK}=1 the traceback is shown.")


def is_for_users(error: Exception) -> bool:
    """
    Check whether an error tells users what to change.

    :param error: an error that was raised
    :return: whether it speaks of a file, a connection, or a module or an expression that the command line names; or whether
        one of :data:`SPEAKS_TO_USERS` has raised it, by a statement and with a text
    """
    if isinstance(error, OSError):
        return True
    if isinstance(error, (ModuleNotFoundError, SyntaxError)):
        return error.name in sys.argv if isinstance(error, ModuleNotFoundError) else error.filename == "<string>"
    if not isinstance(error, (ValueError, TypeError, AssertionError)) or not str(error):
        return False
    place = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    if place is None:
        return False
    code, package = place.tb_frame.f_code.co_code, place.tb_frame.f_globals.get("__name__", "").partition(".")[0]
    return package in SPEAKS_TO_USERS and code[place.tb_lasti] == dis.opmap["RAISE_VARARGS"]  # not by what it computed


if __name__ == "__main__":
    main()
