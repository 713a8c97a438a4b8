"""The commands ``sb3-trpo`` and ``python -m sb3_trpo.zoo``: exit code 0 for success, 2 for wrong arguments, else 1."""

import os
import sys
import traceback

from sb3_trpo.extras import MissingExtraError

TRACEBACK = "SB3_TRPO_TRACEBACK"
"""Environment variable that asks for the traceback of every error."""
SPEAKS_TO_USERS = ("sb3_trpo", "rl_zoo3", "huggingface_sb3", "__main__")
"""Packages whose errors about values, and assertions with a text, are for users; ``__main__`` is a script of RL Zoo."""


def main() -> None:
    """Run a script. Errors that tell the user what to change end it in a sentence, all others in a traceback."""
    try:
        from sb3_trpo.zoo import main as run  # which names the extra [zoo], whatever is missing
        from sb3_trpo.zoo.command import program

        run()
    except MissingExtraError as error:
        sys.exit(str(error))
    except (ValueError, TypeError, AssertionError) as error:
        if TRACEBACK in os.environ or not is_for_users(error):
            raise
        sys.exit(f"{program()}: error: {error}\nWith the environment variable {TRACEBACK}=1 the traceback is shown.")


def is_for_users(error: Exception) -> bool:
    """
    Check whether an error was raised by code that explains to users what to change.

    :param error: an error that was raised
    :return: whether the code that raised it belongs to :data:`SPEAKS_TO_USERS`
    """
    if isinstance(error, AssertionError) and not str(error):
        return False
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return frame.f_globals.get("__name__", "").partition(".")[0] in SPEAKS_TO_USERS


if __name__ == "__main__":
    main()
