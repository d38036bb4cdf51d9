"""Quantized files with q, k and v as three matrices, as every direct export has them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from litert_torch.generative.layers.attention import CausalSelfAttention
from litert_torch.generative.layers.rotary_position_embedding import apply_rope_inline
from litert_torch.generative.layers.sdpa_with_kv_update import sdpa_with_kv_update
from torch import nn

from edgeverify import load_port
from edgeverify.core.case import Case, plan_steps
from edgeverify.hf.checkpoints import open_checkpoint
from edgeverify.legs.quantization.weights import read_weights
from edgeverify.litert.convert import convert
from edgeverify.litert.quantize import quantized
from edgeverify.litert.recipes import load_recipe
from edgeverify_models.port import build_model

pytestmark = pytest.mark.slow
CASE = Case("tinyllama", "tiny", "default", (16,), 32, plan_steps(range(16), (16,), (1,)))
PARTS = ("q", "k", "v")
# Steps from zero to the largest weight.
RECIPES = {"dynamic_int8": 127, "weight_only_int8": 127, "dynamic_int4_block32": 7, "fp16": 2**10}


class Apart(CausalSelfAttention):
    """The same attention with a product each for q, k and v."""

    def forward(self, x: torch.Tensor, *given: Any) -> Any:
        rope, mask, input_pos, kv_cache, _ = given
        heads = (*x.shape[:2], -1, self.config.head_dim)
        q, k, v = (getattr(self, f"{part}_projection")(x).reshape(heads) for part in PARTS)
        q, k = apply_rope_inline(q, k, *rope)
        out, kv_cache = sdpa_with_kv_update(
            q, k, v, kv_cache, input_pos, mask, self.config, self.enable_hlfb
        )
        return self.output_projection(out), kv_cache


def take_apart(attention: Any) -> None:
    config = attention.config
    rows = [n * config.head_dim for n in (config.num_heads, *[config.num_query_groups] * 2)]
    for part in PARTS:
        attention.add_module(f"{part}_projection", nn.Linear(1, 1, config.qkv_use_bias))
    for name, fused in attention.qkv_projection.named_parameters():
        for part, held in zip(PARTS, fused.detach().split(rows), strict=True):
            setattr(getattr(attention, f"{part}_projection"), name, nn.Parameter(held.clone()))
    del attention.qkv_projection
    attention.__class__ = Apart


@pytest.fixture(scope="module", params=["tinyllama", "phi2"])  # Phi-2 has biases
def made(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Any, Any]:
    port = load_port(request.param)
    checkpoint = open_checkpoint(None, port, size="tiny")
    model: Any = build_model(
        port, checkpoint.hf_config, checkpoint.tensors(), mask_cache_size=CASE.kv_cache_len
    )
    for block in model.transformer_blocks:
        assert block.config.attn_config.qkv_transpose_before_split
        take_apart(block.atten_func)
    path = tmp_path_factory.mktemp("apart") / "apart.tflite"
    convert(model, CASE, path)
    return path, checkpoint, model


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_reference_gets_the_file_s_values_of_all_three(
    recipe: str, made: tuple[Path, Any, Any]
) -> None:
    """With the checkpoint's in their place, every right export failed."""
    path, checkpoint, model = made
    state = checkpoint.tensors()
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    weights = read_weights(
        quantized(path, load_recipe(recipe)), checkpoint.hf_config, model.config, shapes
    )
    assert set(weights.held) <= set(weights.places)
    found = weights.state(state)
    for layer in range(len(model.transformer_blocks)):
        for part in PARTS:
            name = f"model.layers.{layer}.self_attn.{part}_proj.weight"
            held = weights.held[f"transformer_blocks.{layer}.atten_func.{part}_projection.weight"]
            assert held.quantized is not None
            assert np.array_equal(found[name].numpy(), held.rows(slice(None)))
            off = (found[name] - state[name]).abs().max()
            assert 0 < off <= 0.51 * state[name].abs().max() / RECIPES[recipe]
