"""Names that all carry another prefix, and an adapter's: taken off and told, or named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from edgeverify.hf.checkpoints import open_checkpoint
from edgeverify_models.port import Port
from tests.hf.checkpoints.test_files import assert_same

Tensors = dict[str, torch.Tensor]
Rename = Callable[[str], str]
WRAPPERS: dict[str, Rename] = {
    "torch.compile": lambda name: f"_orig_mod.{name}",
    "data parallel": lambda name: f"module.{name}",
    "both": lambda name: f"module._orig_mod.{name}",
    "an adapter's wrapper": lambda name: f"base_model.model.{name}",
    "twice": lambda name: f"model.{name}",
    "a wrapper of its own": lambda name: f"net.backbone.{name}",
    "of text inside one of images": lambda name: name.replace("model.", "model.language_model."),
    "without": lambda name: name.removeprefix("model."),
}


def renamed(tensors: Tensors, rename: Rename) -> Tensors:
    return {rename(name): tensor for name, tensor in tensors.items()}


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_another_prefix_is_taken_off_and_told(
    wrapper: str, form: str, folder: Path, port: Port, tensors: Tensors, tmp_path: Path
) -> None:
    stored = renamed(tensors, WRAPPERS[wrapper])
    path = folder / ("model.safetensors" if form == "safetensors" else "pytorch_model.bin")
    (save_file if form == "safetensors" else torch.save)(stored, path)
    opened = open_checkpoint(folder, port, cache_root=tmp_path / "cache")
    assert_same(opened.tensors(), tensors)
    assert_same(opened.mapped(), tensors)
    assert "the tensors' names" in opened.description


def test_the_models_own_names_are_not_remarked_on(
    folder: Path, port: Port, tensors: Tensors
) -> None:
    save_file(tensors, folder / "model.safetensors")
    assert "tensors' names" not in open_checkpoint(folder, port).description


@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_a_tied_head_follows_its_table(
    form: str, tied_port: Port, tensors: Tensors, tmp_path: Path
) -> None:
    drawn = open_checkpoint(None, tied_port).tensors()
    (tmp_path / "config.json").write_text(json.dumps(tied_port.hf_configs["tiny"]))
    table = next(name for name in drawn if "embed_tokens" in name)
    both = {**drawn, "lm_head.weight": drawn[table].clone()}
    for stored in (drawn, both):
        path = tmp_path / ("model.safetensors" if form == "safetensors" else "pytorch_model.bin")
        given = renamed(stored, lambda name: f"_orig_mod.{name}")
        (save_file if form == "safetensors" else torch.save)(given, path)
        assert_same(open_checkpoint(tmp_path, tied_port).tensors(), drawn)


def test_a_prefix_that_does_not_make_them_fit_is_not_taken_off(
    folder: Path, tensors: Tensors, refusal: Callable[..., str]
) -> None:
    stored = renamed(tensors, lambda name: f"module.{name}")
    del stored["module.model.norm.weight"]
    save_file(stored, folder / "model.safetensors")
    message = refusal(folder)
    assert "30 tensors of LlamaForCausalLM missing" in message
    assert "'module.model.embed_tokens.weight'" in message


def test_two_models_under_two_prefixes_are_refused(
    folder: Path, tensors: Tensors, refusal: Callable[..., str]
) -> None:
    stored = renamed(tensors, lambda name: f"one.{name}")
    stored |= renamed(tensors, lambda name: f"two.{name}")
    save_file({name: tensor.clone() for name, tensor in stored.items()}, folder / "w.safetensors")
    assert "30 tensors of LlamaForCausalLM missing" in refusal(folder)


@pytest.mark.parametrize("merged", [False, True], ids=["base_layer", "beside"])
def test_an_adapter_that_is_not_merged_is_named(
    merged: bool, folder: Path, tensors: Tensors, refusal: Callable[..., str]
) -> None:
    stored = renamed(tensors, lambda name: f"base_model.model.{name}")
    q = "base_model.model.model.layers.0.self_attn.q_proj"
    if not merged:
        stored[f"{q}.base_layer.weight"] = stored.pop(f"{q}.weight")
    stored |= {
        f"{q}.lora_A.default.weight": torch.ones(4, 96),
        f"{q}.lora_B.default.weight": torch.ones(160, 4),
    }
    save_file(stored, folder / "model.safetensors")
    message = refusal(folder)
    assert "an adapter is not merged" in message
    assert "lora_A" in message or "base_layer" in message
    assert "merge_and_unload" in message


def test_an_adapter_beside_the_weights_is_refused_as_transformers_would_apply_it(
    folder: Path, tensors: Tensors, refusal: Callable[..., str]
) -> None:
    save_file(tensors, folder / "model.safetensors")
    save_file({"lora": torch.ones(2)}, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text("{}")
    message = refusal(folder)
    assert "holds an adapter (adapter_model.safetensors, adapter_config.json)" in message
    assert "merge the adapter into its base model" in message


def test_an_adapter_that_transformers_would_not_find_is_told(
    folder: Path, port: Port, tensors: Tensors
) -> None:
    save_file(tensors, folder / "model.safetensors")
    save_file({"lora": torch.ones(2)}, folder / "adapter_model.safetensors")
    description = open_checkpoint(folder, port).description
    assert "not used: adapter_model.safetensors (an adapter without" in description
