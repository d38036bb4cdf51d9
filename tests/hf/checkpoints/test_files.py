"""Directories and files that are right: every form gives the same tensors."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from edgeverify.hf.checkpoints import Checkpoint, open_checkpoint
from edgeverify_models.port import Port, build_model


@pytest.fixture
def opened(tmp_path: Path, port: Port) -> Callable[..., Checkpoint]:
    def call(source: str | Path, of: Port | None = None, **options: str) -> Checkpoint:
        return open_checkpoint(source, of or port, cache_root=tmp_path / "cache", **options)

    return call


def assert_same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    assert list(left) == list(right)
    for name in left:
        assert left[name].dtype == torch.float32
        assert torch.equal(left[name], right[name]), name


@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_whole_and_sharded_are_equal(
    form: str, folder: Path, tensors: dict, opened: Callable, save_sharded: Callable
) -> None:
    whole = folder / {"safetensors": "model.safetensors", "bin": "pytorch_model.bin"}[form]
    (save_file if form == "safetensors" else torch.save)(tensors, whole)
    first = opened(folder)
    assert_same(first.tensors(), tensors)
    assert_same(first.tensors(), tensors)  # may be called again
    whole.unlink()
    save_sharded(folder, tensors, 3, form)
    second = opened(folder)
    assert_same(second.tensors(), tensors)
    kind = {"safetensors": "safetensors", "bin": "PyTorch"}[form]
    assert second.description == f"{folder}: {kind} in 3 shards, float32"
    assert second.size == "tiny"


def test_identity_follows_the_contents(folder: Path, tensors: dict, opened: Callable) -> None:
    save_file(tensors, folder / "model.safetensors")
    first = opened(folder).identity
    assert opened(folder).identity == first
    tensors["model.norm.weight"] = tensors["model.norm.weight"] + 1e-3
    save_file(tensors, folder / "model.safetensors")
    second = opened(folder).identity
    assert second != first
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "rope_theta": 3701.0}))
    changed = opened(folder)
    assert changed.identity not in (first, second)
    assert changed.size == "custom"


def test_both_spellings_of_rope_are_the_same_size(
    folder: Path, port: Port, tensors: dict, opened: Callable
) -> None:
    save_file(tensors, folder / "model.safetensors")
    config = dict(port.hf_configs["tiny"])
    config["rope_parameters"] = {"rope_type": "default", "rope_theta": config.pop("rope_theta")}
    config.update(transformers_version="5.23.0", dtype="bfloat16", auto_map={"AutoModel": "x.Y"})
    config["is_llama_config"] = True
    (folder / "config.json").write_text(json.dumps(config))
    checkpoint = opened(folder, size="tiny")
    assert checkpoint.size == "tiny"
    assert checkpoint.hf_config == config


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_floats_become_float32(
    dtype: torch.dtype, folder: Path, tensors: dict, opened: Callable
) -> None:
    stored = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    save_file(stored, folder / "model.safetensors")
    checkpoint = opened(folder)
    assert_same(checkpoint.tensors(), {k: v.to(torch.float32) for k, v in stored.items()})
    assert str(dtype).removeprefix("torch.") in checkpoint.description


@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_float32_is_memory_mapped(form: str, folder: Path, tensors: dict, opened: Callable) -> None:
    file = folder / f"weights.{form}"
    (save_file if form == "safetensors" else torch.save)(tensors, file)
    loaded = opened(folder).tensors()
    maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    ranges = [
        tuple(int(end, 16) for end in line[0].split("-")) for line in maps if line[-1] == str(file)
    ]
    for name, tensor in loaded.items():
        assert any(low <= tensor.data_ptr() < high for low, high in ranges), name


@pytest.mark.parametrize("key", ["model_state_dict", "state_dict", "model"])
def test_wrapped_state_dicts_are_unwrapped(
    key: str, folder: Path, tensors: dict, opened: Callable
) -> None:
    wrapped = {key: OrderedDict(tensors), "epoch": 3, "optimizer_state_dict": {"state": {}}}
    torch.save(wrapped, folder / "last.pt")
    assert_same(opened(folder / "last.pt").tensors(), tensors)


def test_the_old_format_of_torch_is_read(folder: Path, tensors: dict, opened: Callable) -> None:
    torch.save(tensors, folder / "old.pth", _use_new_zipfile_serialization=False)
    assert_same(opened(folder).tensors(), tensors)


def test_what_a_trainer_leaves_is_not_taken_for_weights(
    folder: Path, tensors: dict, opened: Callable
) -> None:
    torch.save(tensors, folder / "pytorch_model.bin")
    for name in ("training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state_0.pth"):
        (folder / name).write_bytes(b"no weights")
    checkpoint = opened(folder)
    assert_same(checkpoint.tensors(), tensors)
    assert "not used" not in checkpoint.description


def test_safetensors_win_and_the_others_are_told(
    folder: Path, tensors: dict, opened: Callable
) -> None:
    save_file(tensors, folder / "model.safetensors")
    (folder / "pytorch_model.bin").write_bytes(b"not looked at")
    (folder / "model.Q4_0.gguf").write_bytes(b"not looked at")
    checkpoint = opened(folder)
    assert_same(checkpoint.tensors(), tensors)
    assert checkpoint.description == (
        f"{folder}: safetensors, float32; not used: model.Q4_0.gguf (there is "
        "safetensors), pytorch_model.bin (there is safetensors)"
    )
    assert checkpoint.gguf_file is None


def test_shards_outside_the_index_are_told(
    folder: Path, tensors: dict, opened: Callable, save_sharded: Callable
) -> None:
    save_sharded(folder, tensors, 2, "safetensors")
    save_file({"stale": torch.ones(2)}, folder / "model-00003-of-00003.safetensors")
    checkpoint = opened(folder)
    assert_same(checkpoint.tensors(), tensors)
    assert checkpoint.description.endswith(
        "; not used: model-00003-of-00003.safetensors (not in model.safetensors.index.json)"
    )


def test_a_file_without_a_config_takes_that_of_the_size(
    tmp_path: Path, port: Port, tensors: dict, opened: Callable
) -> None:
    save_file(tensors, tmp_path / "mine.safetensors")
    checkpoint = opened(tmp_path / "mine.safetensors", size="tiny")
    assert_same(checkpoint.tensors(), tensors)
    assert checkpoint.hf_config == port.hf_configs["tiny"]


def test_links_are_followed_by_their_own_place(
    folder: Path, tmp_path: Path, tensors: dict, opened: Callable
) -> None:
    save_file(tensors, tmp_path / "blob")  # as in the Hub's cache
    (folder / "model.safetensors").symlink_to(tmp_path / "blob")
    (tmp_path / "link").symlink_to(folder)
    assert_same(opened(tmp_path / "link").tensors(), tensors)


def test_rotary_buffers_of_old_checkpoints_are_dropped(
    folder: Path, tensors: dict, opened: Callable
) -> None:
    old = {**tensors, "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(20)}
    save_file(old, folder / "model.safetensors")
    assert_same(opened(folder).tensors(), tensors)


@pytest.mark.parametrize("kept", ["lm_head.weight", "model.embed_tokens.weight", "both"])
def test_a_tied_table_under_either_name_or_both(
    kept: str, tmp_path: Path, tied_port: Port, opened: Callable
) -> None:
    tensors = open_checkpoint(None, tied_port, size="tiny").tensors()
    stored = dict(tensors)
    table = stored.pop("model.embed_tokens.weight")
    names = ["lm_head.weight", "model.embed_tokens.weight"] if kept == "both" else [kept]
    stored.update({name: table.clone() for name in names})
    file = tmp_path / "model.safetensors"
    save_file(stored, file)
    assert_same(opened(file, tied_port, size="tiny").tensors(), tensors)


def test_the_port_takes_what_a_checkpoint_gives(
    folder: Path, port: Port, tensors: dict, opened: Callable
) -> None:
    save_file(tensors, folder / "model.safetensors")
    checkpoint = opened(folder)
    model = build_model(port, checkpoint.hf_config, checkpoint.tensors(), mask_cache_size=16)
    assert torch.equal(model.lm_head.weight, tensors["lm_head.weight"])


def test_the_tokenizer_is_where_its_files_are(
    folder: Path, tensors: dict, opened: Callable
) -> None:
    save_file(tensors, folder / "model.safetensors")
    assert opened(folder).tokenizer_dir is None
    (folder / "tokenizer.json").write_text("{}")
    assert opened(folder).tokenizer_dir == folder
