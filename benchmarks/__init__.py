"""The measurements behind the README's figures: run ``python -m benchmarks.<figure>.run`` from the root of the repository."""
