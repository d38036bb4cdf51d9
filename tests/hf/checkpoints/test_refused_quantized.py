"""Checkpoints that are stored quantized are named as such, by what their tensors are."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from edgeverify.hf.checkpoints import open_checkpoint
from edgeverify_models.port import Port
from tests.hf.checkpoints.test_files import assert_same

Refusal = Callable[..., str]
Tensors = dict[str, torch.Tensor]
Stored = Callable[[str, torch.Tensor], Tensors]


def _awq(stem: str, weight: torch.Tensor) -> Tensors:
    rows, columns = weight.shape
    return {
        f"{stem}.qweight": torch.zeros(columns, rows // 8, dtype=torch.int32),
        f"{stem}.qzeros": torch.zeros(1, rows // 8, dtype=torch.int32),
        f"{stem}.scales": torch.ones(1, rows, dtype=torch.float16),
    }


# method in the config → how a linear layer is stored, and the method by its tensors alone
METHODS: dict[str, tuple[Stored, str]] = {
    "fp8": (
        lambda stem, w: {
            f"{stem}.weight": w.to(torch.float8_e4m3fn),
            f"{stem}.weight_scale_inv": torch.ones(1, 1),
        },
        "fp8",
    ),
    "compressed-tensors": (
        lambda stem, w: {
            f"{stem}.weight_packed": torch.zeros(w.shape[0], w.shape[1] // 8, dtype=torch.int32),
            f"{stem}.weight_scale": torch.ones(w.shape[0], 1),
            f"{stem}.weight_shape": torch.tensor(w.shape),
        },
        "compressed-tensors",
    ),
    "awq": (_awq, "AWQ or GPTQ"),
    "gptq": (
        lambda stem, w: _awq(stem, w) | {f"{stem}.g_idx": torch.zeros(w.shape[1]).int()},
        "GPTQ",
    ),
    "bitsandbytes": (
        lambda stem, w: {
            f"{stem}.weight": torch.zeros(w.numel() // 2, 1, dtype=torch.uint8),
            f"{stem}.weight.absmax": torch.ones(4),
            f"{stem}.weight.quant_map": torch.ones(16),
        },
        "bitsandbytes",
    ),
    "torchao": (lambda stem, w: {f"{stem}.weight": w.mul(99).to(torch.int8)}, "does not name"),
}


def replaced(tensors: Tensors, stored: Stored) -> Tensors:
    made: Tensors = {}
    for name, tensor in tensors.items():
        is_linear = tensor.ndim == 2 and "proj" in name
        made |= stored(name.removesuffix(".weight"), tensor) if is_linear else {name: tensor}
    return made


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize("method", METHODS)
def test_the_method_that_the_config_names(
    method: str, folder: Path, tensors: Tensors, refusal: Refusal
) -> None:
    edit(folder, quantization_config={"quant_method": method, "bits": 4})
    save_file(replaced(tensors, METHODS[method][0]), folder / "model.safetensors")
    message = refusal(folder)
    said = f"the checkpoint is quantized ({method}, 4 bits, says quantization_config in config.json"
    assert said in message
    assert "model.layers.0.self_attn.q_proj." in message
    assert message.endswith("take the unquantized checkpoint, from which this one was made")


@pytest.mark.parametrize("method", METHODS)
def test_without_a_word_in_the_config_the_tensors_tell(
    method: str, folder: Path, tensors: Tensors, refusal: Refusal
) -> None:
    stored, told = METHODS[method]
    save_file(replaced(tensors, stored), folder / "model.safetensors")
    message = refusal(folder)
    assert "the checkpoint is quantized (" in message
    assert told in message


def test_one_quantized_matrix_is_enough(folder: Path, tensors: Tensors, refusal: Refusal) -> None:
    name = "model.layers.2.mlp.down_proj.weight"
    save_file({**tensors, name: tensors[name].to(torch.int8)}, folder / "model.safetensors")
    assert f"{name!r} is stored in int8" in refusal(folder)


def test_a_key_that_a_dequantized_checkpoint_kept_is_no_reason(
    folder: Path, port: Port, tensors: Tensors
) -> None:
    edit(folder, quantization_config={"quant_method": "fp8", "weight_block_size": [128, 128]})
    save_file(
        {name: tensor.to(torch.bfloat16) for name, tensor in tensors.items()},
        folder / "model.safetensors",
    )
    rounded = {name: tensor.to(torch.bfloat16).float() for name, tensor in tensors.items()}
    assert_same(open_checkpoint(folder, port).tensors(), rounded)


def test_a_stray_tensor_of_integers_is_not_called_quantization(
    folder: Path, tensors: Tensors, refusal: Refusal
) -> None:
    stray = {"position_ids": torch.arange(4)}
    save_file({**tensors, **stray}, folder / "model.safetensors")
    message = refusal(folder)
    assert "quantized" not in message.partition("; take")[0]
    assert "1 tensor unknown to LlamaForCausalLM: 'position_ids'" in message
