"""Checkpoints of the tiny ports as directories, as others' files are checked against."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """``checkpoint(name, seed=0)``: seeded weights of a tiny port, saved with their config."""

    def make(name: str, seed: int = 0) -> Path:
        from safetensors.torch import save_file

        from edgeverify import load_port
        from edgeverify.hf.checkpoints import open_checkpoint

        folder = tmp_path_factory.mktemp(f"{name}-{seed}")
        opened = open_checkpoint(None, load_port(name), size="tiny", seed=seed)
        tensors = {key: tensor.contiguous() for key, tensor in opened.tensors().items()}
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        (folder / "config.json").write_text(json.dumps(dict(opened.hf_config)))
        return folder

    return make
