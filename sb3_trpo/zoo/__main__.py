"""The command ``python -m sb3_trpo.zoo``."""

import sys

from sb3_trpo.extras import MissingExtraError

try:
    from sb3_trpo.zoo import main
except MissingExtraError as error:
    sys.exit(str(error))  # a command ends in a sentence, not in a traceback

main()
