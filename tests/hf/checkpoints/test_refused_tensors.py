"""Tensors that are not the model's: the words, and that nothing was written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from edgeverify_models.port import Port

Refusal = Callable[..., str]
EXACTLY = (
    "expected exactly the 30 tensors of LlamaForCausalLM under its config; "
    "take a whole checkpoint that belongs to this config.json"
)


@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_missing_and_unknown_names(
    form: str, folder: Path, tensors: dict, refusal: Refusal
) -> None:
    tensors["model.norm.wieght"] = tensors.pop("model.norm.weight")
    file = folder / f"weights.{form}"
    (save_file if form == "safetensors" else torch.save)(tensors, file)
    assert refusal(file) == (
        f"{{}}/checkpoint/weights.{form}: 1 tensor of LlamaForCausalLM missing: "
        "'model.norm.weight'; 1 tensor unknown to LlamaForCausalLM: 'model.norm.wieght'; "
        f"{EXACTLY}"
    )


def test_many_names_are_told_compactly(folder: Path, tensors: dict, refusal: Refusal) -> None:
    save_file({"model.norm.weight": tensors["model.norm.weight"]}, folder / "model.safetensors")
    message = refusal(folder)
    assert "29 tensors of LlamaForCausalLM missing: 'model.embed_tokens.weight', " in message
    assert "'model.layers.0.mlp.gate_proj.weight' and 23 more; " in message


def test_one_layer_more_and_buffers_that_hf_does_not_ignore(
    folder: Path, tensors: dict, refusal: Refusal
) -> None:
    extra = {"model.layers.0.attn.bias": torch.ones(3), "model.layers.3.x": torch.ones(3)}
    save_file({**tensors, **extra}, folder / "model.safetensors")
    assert refusal(folder) == (
        "{}/checkpoint: 2 tensors unknown to LlamaForCausalLM: 'model.layers.0.attn.bias', "
        f"'model.layers.3.x'; {EXACTLY}"
    )


def test_wrong_shape(folder: Path, tensors: dict, refusal: Refusal) -> None:
    tensors["lm_head.weight"] = tensors["lm_head.weight"][:-1].clone()
    save_file(tensors, folder / "model.safetensors")
    assert refusal(folder) == (
        "{}/checkpoint: 1 tensor of another shape: 'lm_head.weight' is (330, 96), not (331, 96); "
        "expected the shapes of LlamaForCausalLM under its config; "
        "take the config.json that belongs to these weights"
    )


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8])
@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_dtypes_that_need_scales(
    form: str, dtype: torch.dtype, folder: Path, tensors: dict, refusal: Refusal
) -> None:
    tensors["model.norm.weight"] = tensors["model.norm.weight"].to(dtype)
    file = folder / f"w.{form}"
    (save_file if form == "safetensors" else torch.save)(tensors, file)
    assert refusal(file) == (
        f"{{}}/checkpoint/w.{form}: 1 tensor of a dtype that is not read: 'model.norm.weight' "
        f"({str(dtype).removeprefix('torch.')}); expected float32, bfloat16, float16, float64; "
        "take the unquantized checkpoint"
    )


def test_untied_head_that_is_missing(folder: Path, tensors: dict, refusal: Refusal) -> None:
    del tensors["lm_head.weight"]
    save_file(tensors, folder / "model.safetensors")
    assert refusal(folder) == (
        "{}/checkpoint: there is no tensor 'lm_head.weight', and the config does not tie it to "
        "'model.embed_tokens.weight'; expected a head of its own, or tied embeddings in "
        "config.json; add the tensor, or set tie_word_embeddings to true if the model was "
        "trained so"
    )


@pytest.mark.parametrize(
    ("value", "told"), [(float("nan"), "1 NaN"), (float("-inf"), "1 Inf"), (1e300, "1 Inf")]
)
def test_values_that_are_no_numbers(
    value: float, told: str, folder: Path, tensors: dict, refusal: Refusal
) -> None:
    bad = tensors["model.layers.1.mlp.up_proj.weight"].to(torch.float64).clone()
    bad[3, 5] = value
    tensors["model.layers.1.mlp.up_proj.weight"] = bad
    save_file(tensors, folder / "model.safetensors")
    assert refusal(folder, late=True) == (
        "{}/checkpoint: values that are no numbers in 'model.layers.1.mlp.up_proj.weight' "
        f"({told} of 15360); expected finite weights (also after conversion to float32); "
        "take an undamaged checkpoint"
    )


def test_tied_head_that_differs(tmp_path: Path, tied_port: Port, refusal: Refusal) -> None:
    from edgeverify.hf.checkpoints import open_checkpoint

    tensors = open_checkpoint(None, tied_port, size="tiny").tensors()
    head = tensors["model.embed_tokens.weight"].clone()
    head[7, 3] += 1e-6
    save_file({**tensors, "lm_head.weight": head}, tmp_path / "w.safetensors")
    assert refusal(tmp_path / "w.safetensors", of=tied_port, size="tiny", late=True) == (
        "{}/w.safetensors: tensor 'lm_head.weight' differs from 'model.embed_tokens.weight', "
        "though the config ties them; expected the same values, or tie_word_embeddings false in "
        "config.json; untie them in config.json if the model was trained with a head of its own"
    )


def test_file_that_is_gone_when_it_is_loaded(
    folder: Path, port: Port, tensors: dict, tmp_path: Path
) -> None:
    from edgeverify.core.errors import CheckpointError
    from edgeverify.hf.checkpoints import open_checkpoint

    save_file(tensors, folder / "model.safetensors")
    checkpoint = open_checkpoint(folder, port, cache_root=tmp_path / "cache")
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="cannot be read any more"):
        checkpoint.tensors()
