"""A tiny checkpoint on disk, in whatever form a test wants it, and a judge of refusals."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import edgeverify_models as models
from edgeverify.core.errors import CheckpointError
from edgeverify.hf.checkpoints import open_checkpoint
from edgeverify_models.port import Port


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "real: needs a trained checkpoint on this machine")


@pytest.fixture(scope="session")
def port() -> Port:
    """tinyllama: a head of its own."""
    return models.load("tinyllama")


@pytest.fixture(scope="session")
def tied_port() -> Port:
    """smollm: the head is the embedding table."""
    return models.load("smollm")


@pytest.fixture(scope="session")
def _drawn() -> dict[str, dict[str, torch.Tensor]]:
    return {}


@pytest.fixture
def tensors(port: Port, _drawn: dict[str, dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """The seeded tensors of tinyllama's tiny size; they are the test's own."""
    if port.name not in _drawn:
        _drawn[port.name] = open_checkpoint(None, port, size="tiny").tensors()
    return {name: tensor.clone() for name, tensor in _drawn[port.name].items()}


@pytest.fixture
def folder(tmp_path: Path, port: Port) -> Path:
    """A directory with tinyllama's tiny ``config.json`` and no weights."""
    return make_folder(tmp_path / "checkpoint", port.hf_configs["tiny"])


def make_folder(path: Path, config: Mapping[str, Any]) -> Path:
    path.mkdir()
    (path / "config.json").write_text(json.dumps(dict(config)))
    return path


@pytest.fixture
def save_sharded() -> Callable[..., Path]:
    """Writes tensors into shards with an index, and gives the index."""

    def save(folder: Path, tensors: dict[str, torch.Tensor], shards: int, form: str) -> Path:
        stem = {"safetensors": "model", "bin": "pytorch_model"}[form]
        weight_map = {}
        names = list(tensors)
        for i in range(shards):
            part = {name: tensors[name] for name in names[i::shards]}
            file = f"{stem}-{i + 1:05}-of-{shards:05}.{form}"
            (save_file if form == "safetensors" else torch.save)(part, folder / file)
            weight_map.update(dict.fromkeys(part, file))
        index = folder / f"{stem}.{form}.index.json"
        index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
        return index

    return save


def _tree(root: Path) -> dict[str, tuple[int, int]]:
    """What is on the disk: path → size and time of change; empty directories do not count."""
    return {
        str(p): (p.lstat().st_size, p.lstat().st_mtime_ns)
        for p in sorted(root.rglob("*"))
        if not p.is_dir()
    }


@pytest.fixture
def refusal(tmp_path: Path, port: Port) -> Callable[..., str]:
    """Opens a checkpoint that must be refused at once, and gives the message.

    ``late=True``: it must open, and be refused when its tensors are loaded. The message has
    ``{}`` where it names ``tmp_path``; the disk must be as it was.
    """

    def call(
        source: str | Path, *, late: bool = False, of: Port | None = None, **options: Any
    ) -> str:
        cache = tmp_path / "cache"
        before = _tree(tmp_path)
        if late:
            opened = open_checkpoint(source, of or port, cache_root=cache, **options)
            with pytest.raises(CheckpointError) as caught:
                opened.tensors()
        else:
            with pytest.raises(CheckpointError) as caught:
                open_checkpoint(source, of or port, cache_root=cache, **options)
        assert _tree(tmp_path) == before
        message = str(caught.value)
        assert "\n" not in message
        return message.replace(str(tmp_path), "{}")

    return call
