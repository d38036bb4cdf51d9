"""Checkpoints: the weights of a run, from files, from the Hub, or seeded.

``open_checkpoint`` checks everything that needs no tensor data (config, family, index, headers,
names, shapes, dtypes); ``Checkpoint.tensors`` checks the rest. Every failure is an
``EdgeVerifyError``. The files of a failed checkpoint are not changed, and nothing is written.
"""

from __future__ import annotations

from edgeverify.hf.checkpoints.checkpoint import Checkpoint, open_checkpoint

__all__ = ["Checkpoint", "open_checkpoint"]
