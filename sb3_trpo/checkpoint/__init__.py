"""
Exact resume, atomic and without pickle; needs the extra ``[checkpoint]``.

    from sb3_trpo.checkpoint import ResumableCheckpoint
    model.learn(1e6, callback=ResumableCheckpoint("runs/hopper", every=50_000))

Run the same script again after a crash, and it continues.
"""

from sb3_trpo.extras import needs

with needs("Checkpoints need", "checkpoint"):
    from sb3_trpo.checkpoint.callback import ResumableCheckpoint

__all__ = ["ResumableCheckpoint"]
