"""Our algorithms by the names that RL Zoo gives them, and their settings files."""

from __future__ import annotations

from pathlib import Path

from sb3_trpo import TRPO
from sb3_trpo.constrained.trpo import ConstrainedTRPO
from sb3_trpo.maskable.trpo import MaskableTRPO
from sb3_trpo.recurrent.trpo import MaskableRecurrentTRPO, RecurrentTRPO

ALGORITHMS: dict[str, type[TRPO]] = {
    "trpo": TRPO,
    "trpo_mask": MaskableTRPO,
    "trpo_lstm": RecurrentTRPO,
    "trpo_mask_lstm": MaskableRecurrentTRPO,
    "trpo_cost": ConstrainedTRPO,
}


def config_file(algo: str) -> Path:
    """
    Find the settings that come with the package.

    :param algo: a key of ``ALGORITHMS``
    :return: the YAML file, inside an installed package or beside it in a checkout
    """
    package = Path(__file__).parents[1]
    installed, checkout = (folder / "zoo_configs" / f"{algo}.yml" for folder in (package, package.parent))
    return installed if installed.is_file() else checkout
