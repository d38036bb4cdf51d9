"""What the audits' tests share: tiny ports, loaded, beside their checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn

from edgeverify.hf.checkpoints import open_checkpoint
from edgeverify_models import load
from edgeverify_models.port import Port, build_model

MASK_ROWS = 40


@dataclass
class Loaded:
    """A port, its tiny model, and the checkpoint that it was loaded from.

    ``model`` shares no memory with ``state``, so that a test may change either.
    """

    port: Port
    hf_config: Mapping[str, Any]
    model: Any
    state: dict[str, torch.Tensor]


@pytest.fixture
def loaded() -> Callable[[str], Loaded]:
    """``loaded("gemma2")``: made anew for each test."""

    def make(name: str) -> Loaded:
        port = load(name)
        checkpoint = open_checkpoint(None, port, size="tiny")
        state = checkpoint.tensors()
        model: nn.Module = build_model(
            port, checkpoint.hf_config, checkpoint.tensors(), mask_cache_size=MASK_ROWS
        )
        return Loaded(port, checkpoint.hf_config, model, state)

    return make
