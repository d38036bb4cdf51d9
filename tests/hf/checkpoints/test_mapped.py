"""Checkpoints as memory-mapped files: the same bits, whatever the source, and none resident."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import edgeverify_models as models
from edgeverify.core.errors import CheckpointError
from edgeverify.core.store.mapped import forget, is_mapped
from edgeverify.hf.checkpoints import open_checkpoint, seeded
from edgeverify_models.port import Port

NAMES = ["gemma1", "gemma2", "tinyllama", "phi2", "openelm", "smollm", "smollm2"]


def assert_mapped_as_loaded(checkpoint: object) -> None:
    loaded, mapped = checkpoint.tensors(), checkpoint.mapped()
    assert list(mapped) == list(loaded)
    assert is_mapped(*mapped.values())
    for name, tensor in loaded.items():
        assert mapped[name].dtype == torch.float32
        assert mapped[name].shape == tensor.shape
        assert torch.equal(mapped[name].view(torch.int32), tensor.view(torch.int32)), name
        forget(mapped[name])
        assert torch.equal(mapped[name], tensor), "what was forgotten is read again"


@pytest.mark.parametrize("name", NAMES)
def test_seeded(name: str, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(None, models.load(name), size="tiny", cache_root=tmp_path)
    assert_mapped_as_loaded(checkpoint)
    assert len(list((tmp_path / "float32").glob("*.bin"))) == 1


def test_drawn_in_pieces_is_drawn_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = seeded.Draw((7, 13), 0.5)
    whole = seeded.draw_tensor("a", draw, 1)
    monkeypatch.setattr(seeded, "_PIECE", 10)
    assert torch.equal(seeded.draw_tensor("a", draw, 1), whole)
    norm = seeded.Draw((37,), 0.2, norm=True)
    pieces: list[np.ndarray] = []
    seeded.draw_into(np.empty(37, np.float32), "n", norm, 1, done=pieces.append)
    assert len(pieces) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("form", ["safetensors", "bin", "legacy"])
def test_files(
    form: str, dtype: torch.dtype, folder: Path, port: Port, tensors: dict, tmp_path: Path
) -> None:
    stored = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    if form == "safetensors":
        save_file(stored, folder / "model.safetensors")
    else:
        zipped = form == "bin"
        file = folder / "pytorch_model.bin"
        torch.save(stored, file, _use_new_zipfile_serialization=zipped)
    cache = tmp_path / "cache"
    assert_mapped_as_loaded(open_checkpoint(folder, port, cache_root=cache))
    in_place = form == "safetensors" and dtype == torch.float32
    assert (cache / "float32").exists() != in_place


def test_shards_and_pieces(
    folder: Path,
    port: Port,
    tensors: dict,
    tmp_path: Path,
    save_sharded: Callable,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("edgeverify.hf.checkpoints.mapped_files._PIECE", 1000)
    save_sharded(folder, {k: v.to(torch.bfloat16) for k, v in tensors.items()}, 3, "safetensors")
    assert_mapped_as_loaded(open_checkpoint(folder, port, cache_root=tmp_path / "cache"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_is_no_number_is_refused(
    dtype: torch.dtype, folder: Path, port: Port, tensors: dict, tmp_path: Path
) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    tensors[name] = tensors[name].to(dtype)
    tensors[name][3, 5] = float("nan")
    save_file(tensors, folder / "model.safetensors")
    cache = tmp_path / "cache"
    with pytest.raises(CheckpointError, match=rf"no numbers in '{name}' \(1 NaN of 15360\)"):
        open_checkpoint(folder, port, cache_root=cache).mapped()
    assert not list(cache.rglob("*.bin")), "nothing is kept of it"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tied_head(dtype: torch.dtype, tied_port: Port, tmp_path: Path) -> None:
    tensors = open_checkpoint(None, tied_port, size="tiny", cache_root=tmp_path).tensors()
    stored = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    head = stored["model.embed_tokens.weight"].clone()
    save_file({**stored, "lm_head.weight": head}, tmp_path / "w.safetensors")
    options = {"size": "tiny", "cache_root": tmp_path}
    opened = open_checkpoint(tmp_path / "w.safetensors", tied_port, **options)
    assert_mapped_as_loaded(opened)
    head[7, 3] += 1
    save_file({**stored, "lm_head.weight": head}, tmp_path / "x.safetensors")
    other = open_checkpoint(tmp_path / "x.safetensors", tied_port, **options)
    with pytest.raises(CheckpointError, match=r"'lm_head\.weight' differs from"):
        other.mapped()
