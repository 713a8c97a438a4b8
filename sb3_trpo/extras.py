"""What is missing when a library of an extra is, and how to install it: the only place in the code that names a command."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager

PACKAGE = __name__.partition(".")[0]
CONTRIB = ("Action masks and policies with memory need", "contrib")
"""For :func:`needs`, in every module that imports sb3-contrib."""
ZOO = ("RL Zoo's scripts need", "zoo")
"""For :func:`needs`, around what they import."""


class MissingExtraError(ImportError):
    """
    A library is missing that an extra of this package brings.

    :param what: that needs the library, with its verb
    :param module: that could not be imported
    :param extra: that brings it, as in ``pyproject.toml``
    """

    def __init__(self, what: str, module: str, extra: str) -> None:
        # A name alone, "sb3-trpo[...]", would have pip look for the package on an index, which need not be ours.
        super().__init__(
            f"{what} {module}, which the extra [{extra}] brings. In a checkout of sb3_trpo: pip install '.[{extra}]'. "
            f"From a wheel: pip install 'WHEEL[{extra}]', where WHEEL is the path of its .whl file.",
            name=module,
        )


@contextmanager
def needs(what: str, extra: str) -> Iterator[None]:
    """
    Import what an extra brings in this block.

    :param what: that needs it, with its verb, such as "Checkpoints need"
    :param extra: that brings it
    :raises MissingExtraError: if a module is not there
    """
    try:
        yield
    except ModuleNotFoundError as error:
        module = (error.name or str(error)).partition(".")[0]
        if module == PACKAGE:
            raise
        raise MissingExtraError(what, module, extra) from error


def require(what: str, extra: str, *modules: str) -> None:
    """
    Check that modules are there before others import them.

    :param what: that needs them, with its verb
    :param extra: that brings them
    :param modules: names to import
    :raises MissingExtraError: if one is not there
    """
    with needs(what, extra):
        for module in modules:
            importlib.import_module(module)


def require_for_learning(progress_bar: bool, tensorboard_log: str | None) -> None:
    """
    Check what ``learn()`` was asked to show and to log, before any work.

    :param progress_bar: whether it shows one
    :param tensorboard_log: folder for TensorBoard, ``None`` for no log
    :raises MissingExtraError: if a library for it is not there
    """
    if progress_bar:
        require("progress_bar=True needs", "progress", "tqdm", "rich")
    if tensorboard_log is not None:
        require("tensorboard_log needs", "tensorboard", "tensorboard")
