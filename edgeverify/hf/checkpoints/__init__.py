"""Checkpoints: the weights of a run, from files, from the Hub, or seeded.

``open_checkpoint`` judges all that can be judged without the data (config, family, index, headers,
names, shapes, dtypes) and ``Checkpoint.tensors`` what needs it. Every failure is an
``EdgeVerifyError``; files of a failed checkpoint are left as they were, and nothing is written.
"""

from __future__ import annotations

from edgeverify.hf.checkpoints.checkpoint import Checkpoint, open_checkpoint

__all__ = ["Checkpoint", "open_checkpoint"]
