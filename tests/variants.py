"""Ports that are wrong in one known way, for tests that must see them caught."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from litert_torch.generative.layers.model_config import AttentionType, ModelConfig
from torch import nn

import models
from models.port import Port


def with_config(port: Port, **changes: Any) -> Port:
    """A port whose model is built from a config with ``changes``; the reference is not."""
    return replace(port, model_config=lambda hf: port.model_config({**hf, **changes}))


def with_hf(port: Port, **changes: Any) -> Port:
    """A port whose tiny HF config has ``changes``, on both sides."""
    tiny = {**port.hf_configs["tiny"], **changes}
    return replace(port, hf_configs={**port.hf_configs, "tiny": tiny})


def with_model(port: Port, change: Callable[[nn.Module], None]) -> Port:
    """A port whose model is changed once it is built."""

    class Changed(port.model_class):  # type: ignore[misc, name-defined]
        def __init__(self, config: ModelConfig, mask_cache_size: int = 0) -> None:
            super().__init__(config, mask_cache_size)
            change(self)

    return replace(port, model_class=Changed)


def norm_eps_one_percent_off() -> Port:
    port = models.load("gemma2")
    return with_config(port, rms_norm_eps=port.hf_configs["tiny"]["rms_norm_eps"] * 1.01)


def embedding_scale_in_bfloat16() -> Port:
    port = models.load("gemma1")

    def config(hf: Mapping[str, Any]) -> ModelConfig:
        right = port.model_config(hf)
        right.embedding_scale = torch.tensor(right.embedding_scale).bfloat16().item()
        return right

    return replace(port, model_config=config)


def query_scale_off() -> Port:
    """0.1 % on the scale is 0.2 % on the number whose root it is."""
    port = models.load("gemma2")
    scalar = port.hf_configs["tiny"]["query_pre_attn_scalar"]
    return with_config(port, query_pre_attn_scalar=scalar / 1.001**2)


def rms_eps_1_1e_5() -> Port:
    port = with_hf(models.load("tinyllama"), rms_norm_eps=1e-5)
    return with_config(port, rms_norm_eps=1.1e-5)


def gate_and_up_swapped_in_block_1() -> Port:
    def swap(model: nn.Module) -> None:
        feed_forward = model.transformer_blocks[1].ff
        gate, up = feed_forward.w1, feed_forward.w3

        def forward(x: torch.Tensor) -> torch.Tensor:
            x = feed_forward.pre_ff_norm(x)
            out = feed_forward.w2(feed_forward.act(up(x)) * gate(x))
            return feed_forward.post_ff_norm(out)

        feed_forward.forward = forward

    return with_model(models.load("tinyllama"), swap)


def rope_base_off() -> Port:
    return with_config(models.load("smollm"), rope_theta=10000.0)


def fourth_layer_masked_wrongly() -> Port:
    """Block 3 of Gemma 2 is global; here it slides."""
    port = models.load("gemma2")

    def config(hf: Mapping[str, Any]) -> ModelConfig:
        right = port.model_config(hf)
        attention = right.block_configs[3].attn_config
        attention.attn_type = AttentionType.LOCAL_SLIDING
        attention.sliding_window_size = hf["sliding_window"]
        return right

    return replace(port, model_config=config)


def final_norm_past_its_hooks() -> Port:
    """Right, but its final norm is called so that nothing can be fed into it."""

    def change(model: nn.Module) -> None:
        kind = type(model.final_norm)
        model.final_norm.__class__ = type("Direct", (kind,), {"__call__": kind.forward})

    return with_model(models.load("phi2"), change)


def logits_of_the_last_position_only() -> Port:
    def change(model: nn.Module) -> None:
        forward = model.forward

        def last_only(*args: Any, **kwargs: Any) -> dict[str, Any]:
            output = forward(*args, **kwargs)
            return {**output, "logits": output["logits"][:, -1:]}

        model.forward = last_only

    return with_model(models.load("smollm"), change)


def kv_row_off_by_one_in_decode() -> Port:
    """Each decode step writes its row of the cache over the one before."""

    def change(model: nn.Module) -> None:
        for block in model.transformer_blocks:
            attend = block.atten_func.forward

            def forward(
                x: torch.Tensor,
                rope: Any,
                mask: Any,
                input_pos: torch.Tensor,
                *rest: Any,
                attend: Callable[..., Any] = attend,
            ) -> Any:
                shift = 1 if len(input_pos) == 1 else 0
                return attend(x, rope, mask, input_pos - shift, *rest)

            block.atten_func.forward = forward

    return with_model(models.load("tinyllama"), change)
