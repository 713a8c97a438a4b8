"""
Exact resume, atomic and free of pickle; needs the extra ``[checkpoint]``.

    from sb3_trpo.checkpoint import ResumableCheckpoint
    model.learn(1e6, callback=ResumableCheckpoint("runs/hopper", every=50_000))

Run the same script again after a crash, and it goes on.
"""

try:
    import filelock  # noqa: F401  # only to tell whether they are there
    import safetensors  # noqa: F401
except ImportError as error:
    raise ImportError(f"Checkpoints need {error.name}: pip install 'sb3-trpo[checkpoint]'") from error

from sb3_trpo.checkpoint.callback import ResumableCheckpoint

__all__ = ["ResumableCheckpoint"]
