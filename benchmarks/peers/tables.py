"""The table of ``results/peers.json``."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.common.tables import table
from benchmarks.common.timing import ratio, show

PEERS = {
    "sb3_trpo": ("sb3_trpo's TRPO", "bounds the KL of the joint action, from the old policy to the new one"),
    "sb3_contrib": (
        "sb3-contrib's TRPO",
        "bounds the reverse KL, averaged over action dimensions: {target_kl} / 6",
    ),
    "sbx": ("SBX's PPO", "no trust region: policy and critic both take all minibatch steps; compiled by JAX"),
    "tianshou": (
        "Tianshou's TRPO",
        "our KL; the critic takes {passes} steps on the whole rollout, none on minibatches",
    ),
    "skrl": ("skrl's TRPO", "our KL; the line search asks for half of the expected improvement"),
}
"""Names and what differs: all have the same settings as far as they have them."""


def tables(raw: dict[str, Any]) -> dict[str, str]:
    """
    Tabulate steps per second of processor time.

    :param raw: contents of ``peers.json``
    :return: Markdown by name
    """
    seconds = {name: [each["cpu_seconds"] for each in result["rounds"]] for name, result in raw["results"].items()}
    rows = []
    for name, result in raw["results"].items():
        title, difference = PEERS[name]
        versions = ", ".join(f"{package} {version.split('+')[0]}" for package, version in result["versions"].items())
        speed = np.median([each["steps"] / each["cpu_seconds"] for each in result["rounds"]])
        beside = "" if name == "sb3_trpo" else show(ratio(seconds[name], seconds["sb3_trpo"]))
        rows.append([title, versions, f"{speed:,.0f}", beside, difference.format(**raw["settings"])])
    head = ("HalfCheetah-v5", "versions", "steps per CPU second", "its CPU time / ours", "what differs")
    return {"peers": table(head, rows)}
