"""Policies that are plain stacks of layers: read, run, and differentiated by hand."""
