"""The measurements behind the figures of the documentation: run ``python -m benchmarks.<figure>.run`` from the root."""
