"""
RL Zoo with our algorithms: ``python -m sb3_trpo.zoo train --algo trpo --env Hopper-v5``; needs the extra ``[zoo]``.

RL Zoo's scripts keep their arguments. ``trpo`` means :class:`sb3_trpo.TRPO`; ``trpo_mask``, ``trpo_lstm``,
``trpo_mask_lstm`` and ``trpo_cost`` are its variants. Settings come from ``zoo_configs`` unless ``--conf-file`` is given. One
script is ours: ``report`` evaluates a finished run and plots its learning curve. :mod:`sb3_trpo.zoo.patches` lists what is
replaced in RL Zoo while a script runs.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from sb3_trpo.extras import ZOO, needs

if TYPE_CHECKING:
    from sb3_trpo.zoo.algorithms import ALGORITHMS, config_file
    from sb3_trpo.zoo.command import main
    from sb3_trpo.zoo.experiment import ExperimentManager
    from sb3_trpo.zoo.masking import evaluate
    from sb3_trpo.zoo.patches import install
    from sb3_trpo.zoo.reporting import final_returns, report
    from sb3_trpo.zoo.search_spaces import sample_lstm_params, sample_trpo_params

__all__ = [
    "ALGORITHMS",
    "ExperimentManager",
    "config_file",
    "evaluate",
    "final_returns",
    "install",
    "main",
    "report",
    "sample_lstm_params",
    "sample_trpo_params",
]

HOMES = {
    "ALGORITHMS": "algorithms",
    "ExperimentManager": "experiment",
    "config_file": "algorithms",
    "evaluate": "masking",
    "final_returns": "reporting",
    "install": "patches",
    "main": "command",
    "report": "reporting",
    "sample_lstm_params": "search_spaces",
    "sample_trpo_params": "search_spaces",
}
"""Public names and their modules, imported on first use: ``memory_tasks`` and ``plots`` do not need RL Zoo."""


def __getattr__(name: str) -> Any:
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with needs(*ZOO):
        return getattr(import_module(f"{__name__}.{HOMES[name]}"), name)
