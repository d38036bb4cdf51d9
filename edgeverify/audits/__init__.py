"""Audits: exact checks of a port and its file that need no run.

``config`` compares the HF config with the re-authored model and the file, ``weights`` compares
every tensor of the checkpoint with both, and ``signatures`` compares the file's inputs and outputs
with the case. No audit has a tolerance.
"""
