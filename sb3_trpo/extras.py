"""Errors for missing optional dependencies. The only place in the code that contains a ``pip install`` command."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager

PACKAGE = __name__.partition(".")[0]
CONTRIB = ("Action masks and policies with memory need", "contrib")
"""Arguments of :func:`needs` for every module that imports sb3-contrib."""
ZOO = ("RL Zoo's scripts need", "zoo")
"""Arguments of :func:`needs` for the imports of the zoo."""


class MissingExtraError(ImportError):
    """
    Raised if a library is missing that one of this package's extras installs.

    :param what: feature that needs the library, with its verb, such as "Checkpoints need"
    :param module: name of the module that could not be imported
    :param extra: name of the extra, as in ``pyproject.toml``
    """

    def __init__(self, what: str, module: str, extra: str) -> None:
        # The bare name "sb3-trpo[...]" would make pip look on an index, where that name may belong to another package.
        super().__init__(
            f"{what} {module}, which the extra [{extra}] brings. In a checkout of sb3_trpo: pip install '.[{extra}]'. "
            f"From a wheel: pip install 'WHEEL[{extra}]', where WHEEL is the path of its .whl file.",
            name=module,
        )


@contextmanager
def needs(what: str, extra: str) -> Iterator[None]:
    """
    Import modules of an extra inside this block.

    :param what: feature that needs them, with its verb, such as "Checkpoints need"
    :param extra: name of the extra
    :raises MissingExtraError: if a module is missing
    """
    try:
        yield
    except MissingExtraError as error:  # of an extra that this one contains
        raise MissingExtraError(what, error.name or "a library", extra) from error
    except ModuleNotFoundError as error:
        module = (error.name or str(error)).partition(".")[0]
        if module == PACKAGE:
            raise
        raise MissingExtraError(what, module, extra) from error


def require(what: str, extra: str, *modules: str) -> None:
    """
    Check that modules can be imported before other code imports them.

    :param what: feature that needs them, with its verb
    :param extra: name of the extra
    :param modules: names of the modules
    :raises MissingExtraError: if one is missing
    """
    with needs(what, extra):
        for module in modules:
            importlib.import_module(module)


def require_for_learning(progress_bar: bool, tensorboard_log: str | None) -> None:
    """
    Check that ``learn()`` can show a progress bar and log to TensorBoard as asked, before it does any work.

    :param progress_bar: whether to show a progress bar
    :param tensorboard_log: folder for TensorBoard, ``None`` for no log
    :raises MissingExtraError: if a library is missing
    """
    if progress_bar:
        require("progress_bar=True needs", "progress", "tqdm", "rich")
    if tensorboard_log is not None:
        require("tensorboard_log needs", "tensorboard", "tensorboard")
