"""Damaged files, shards and indexes: the words, and that nothing was written."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path

from safetensors.torch import save_file

Refusal = Callable[..., str]
AGAIN = "copy or download it again"


def test_cut_short(folder: Path, tensors: dict, refusal: Refusal) -> None:
    file = folder / "model.safetensors"
    save_file(tensors, file)
    size = file.stat().st_size
    os.truncate(file, size - 100)
    assert refusal(folder) == (
        f"{{}}/checkpoint/model.safetensors: is cut short: {size - 100} bytes of {size}; "
        f"expected the {size} bytes that its header announces; {AGAIN}"
    )


def test_damaged_headers(folder: Path, tensors: dict, refusal: Refusal) -> None:
    file = folder / "model.safetensors"
    where = "{}/checkpoint/model.safetensors: "
    tail = f"; expected a whole .safetensors file; {AGAIN}"
    file.write_bytes(b"")
    assert refusal(folder) == f"{where}no header fits into its 0 bytes{tail}"
    file.write_bytes(struct.pack("<Q", 10**9) + b"x" * 50)
    assert refusal(folder) == f"{where}no header fits into its 58 bytes{tail}"
    file.write_bytes(struct.pack("<Q", 3) + b"{]}" + b"x" * 50)
    assert refusal(folder).startswith(f"{where}its header is damaged (")
    for header in (b"[1, 2]", b'{"a": 3}', b'{"a": {"dtype": "F32", "shape": [2]}}'):
        file.write_bytes(struct.pack("<Q", len(header)) + header)
        assert "its header is damaged (" in refusal(folder)
    twice = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
    twice += b'"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}'
    file.write_bytes(struct.pack("<Q", len(twice)) + twice + bytes(8))
    assert refusal(folder) == f"{where}its header is damaged ('a' is listed twice){tail}"
    short = b'{"a":{"dtype":"F32","shape":[3],"data_offsets":[0,4]}}'
    file.write_bytes(struct.pack("<Q", len(short)) + short + bytes(4))
    assert "its header is damaged ('a' has 4 bytes for float32 (3,))" in refusal(folder)
    endless = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,Infinity]}}'
    file.write_bytes(struct.pack("<Q", len(endless)) + endless + bytes(4))
    assert "its header is damaged (" in refusal(folder)
    gap = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}'
    file.write_bytes(struct.pack("<Q", len(gap)) + gap + bytes(8))
    assert "safetensors refuses it (" in refusal(folder)


def test_git_lfs_pointer(folder: Path, refusal: Refusal) -> None:
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid x")
    assert refusal(folder) == (
        "{}/checkpoint/model.safetensors: is a Git LFS pointer, not the weights; "
        "expected the file itself; run 'git lfs pull' in its repository"
    )


def test_missing_shard(
    folder: Path, tensors: dict, refusal: Refusal, save_sharded: Callable
) -> None:
    save_sharded(folder, tensors, 3, "safetensors")
    (folder / "model-00002-of-00003.safetensors").unlink()
    assert refusal(folder) == (
        "{}/checkpoint: 1 of 3 shards missing: 'model-00002-of-00003.safetensors'; expected every "
        "file that model.safetensors.index.json names; copy or download them again"
    )


def test_tensor_in_two_shards(
    folder: Path, tensors: dict, refusal: Refusal, save_sharded: Callable
) -> None:
    save_sharded(folder, tensors, 2, "safetensors")
    second = {n: t for i, (n, t) in enumerate(tensors.items()) if i % 2}
    second["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"]
    save_file(second, folder / "model-00002-of-00002.safetensors")
    assert refusal(folder) == (
        "{}/checkpoint: tensor 'model.embed_tokens.weight' is in two shards, "
        "model-00001-of-00002.safetensors and model-00002-of-00002.safetensors; "
        "expected every tensor once; copy or download the checkpoint again"
    )


def test_index_and_shards_disagree(
    folder: Path, tensors: dict, refusal: Refusal, save_sharded: Callable
) -> None:
    index = save_sharded(folder, tensors, 2, "safetensors")
    whole = json.loads(index.read_text())["weight_map"]
    changed = {**whole, "ghost": "model-00001-of-00002.safetensors"}
    del changed["model.norm.weight"]
    index.write_text(json.dumps({"weight_map": changed}))
    where = whole["model.norm.weight"]
    assert refusal(folder) == (
        "{}/checkpoint/model.safetensors.index.json: names what is not there: 'ghost' in "
        f"model-00001-of-00002.safetensors and does not name 'model.norm.weight' in {where}; "
        "expected the tensors of its shards; copy or download the index and the shards again"
    )


def test_index_that_is_none(
    folder: Path, tensors: dict, refusal: Refusal, save_sharded: Callable
) -> None:
    index = save_sharded(folder, tensors, 2, "safetensors")
    index.write_text('{"weight_map": {}}')
    assert "has no weight_map" in refusal(folder)
    index.write_text('{"weight_map": {"a": "../../etc/passwd"}}')
    assert "puts 'a' into '../../etc/passwd'" in refusal(folder)
    index.unlink()
    assert refusal(folder) == (
        "{}/checkpoint: holds shards without their index; "
        "expected model.safetensors.index.json; copy or download it, too"
    )
    assert "is one of 2 shards" in refusal(folder / "model-00001-of-00002.safetensors")
