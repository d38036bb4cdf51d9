"""Audits: what can be told of a port and its file without running them, and told exactly.

``config`` holds what the HF config says against the re-authored model and the file, ``weights``
every tensor of the checkpoint against both, ``signatures`` the file's inputs and outputs against
the case. Nothing here knows a tolerance.
"""
