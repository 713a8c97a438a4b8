"""Shares of the wall time of ``learn()``: the update's parts by the log, those of collecting by samples of the stack."""

from __future__ import annotations

from functools import partial
from typing import Any

from benchmarks.common.timing import seconds
from benchmarks.speed.cases import CASES, make_model
from benchmarks.speed.sampling import PARTS, REST, sampled

LEAST_SECONDS = 20.0
"""How long to take samples."""


def measure_shares(name: str, least_seconds: float = LEAST_SECONDS, **settings: Any) -> dict[str, Any]:
    """
    Split the wall time of ``learn()`` of one case into its parts.

    :param name: key of ``CASES``
    :param least_seconds: repeat it for as long
    :param settings: replace keywords of the constructor
    :return: the share of each part
    """
    model = make_model(CASES[name], "ours", **settings)
    size = model.n_steps * model.n_envs
    model.learn(size)
    total, logged = 0.0, {"collect": 0.0, "policy_step": 0.0, "critic": 0.0}
    with sampled() as times:
        while total < least_seconds:
            total += seconds(partial(model.learn, size, log_interval=None, reset_num_timesteps=False))
            for part in logged:
                logged[part] += model.logger.name_to_value[f"time/{part}_seconds"]
    of_collecting = {part: times[part] for part in (*PARTS, REST)}
    scale = logged["collect"] / max(sum(of_collecting.values()), 1e-9)
    parts = {part: value * scale for part, value in of_collecting.items()}
    parts |= {"policy step": logged["policy_step"], "critic": logged["critic"]}
    parts["rest"] = total - sum(parts.values())
    shares = {part: value / total for part, value in parts.items()}
    print(f"| {name} | " + " | ".join(f"{value:.0%}" for value in shares.values()) + " |", flush=True)
    return {"shares": shares}
