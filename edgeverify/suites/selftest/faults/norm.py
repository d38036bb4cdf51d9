"""Faults of the norms."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from litert_torch.generative.layers import model_config as cfg
from litert_torch.generative.layers import rotary_position_embedding as rotary
from torch.nn import functional

from edgeverify.suites.selftest.faults.fault import Faults
from edgeverify.suites.selftest.faults.port_changes import (
    Blocks,
    Function,
    State,
    in_bfloat16,
    patch_attention,
    tensor,
    with_blocks,
    with_config,
    with_model,
    with_model_config,
    with_scaled,
    with_state,
)
from edgeverify.suites.selftest.faults.ports import GEMMA, LLAMA, ONE_RESIDUAL_NORM, RMS
from edgeverify_models.port import Port

FAULTS = Faults("norm")
EVERY_NORM = "blocks.*.attn_norm final_norm"
PLAIN = (*LLAMA, "openelm")  # RMSNorm without Gemma's offset
GEMMA2_NORMS = "litert-torch addf08d, 7618edc"


def _norm_configs(config: cfg.ModelConfig) -> list[cfg.NormalizationConfig]:
    norms = [config.final_norm_config]
    for index in range(config.num_layers):
        block = config.block_config(index)
        norms += [block.pre_attention_norm_config, block.post_attention_norm_config]
        norms += [block.ff_config.pre_ff_norm_config, block.ff_config.post_ff_norm_config]
        norms += [block.attn_config.query_norm_config, block.attn_config.key_norm_config]
    return [norm for norm in norms if norm is not None]


def _factor(norm: Any) -> torch.Tensor:
    return 1 + norm.weight if getattr(norm, "zero_centered_gamma", False) else norm.weight


def _with_pre_norm(
    port: Port, change: Callable[[Any, torch.Tensor], torch.Tensor], blocks: Blocks = None
) -> Port:
    """The norm before the attention is ``change(norm, x)``."""

    def change_block(block: Any) -> None:
        norm = block.pre_atten_norm
        block.pre_atten_norm.forward = lambda x: change(norm, x)

    return with_blocks(port, change_block, blocks)


_with_pre_norm_1 = partial(_with_pre_norm, blocks=(1,))


def _without_norm(port: Port, path: str) -> Port:
    """A norm that is built and loaded, but passes its input."""

    def change(block: Any) -> None:
        block.get_submodule(path).forward = lambda x: x

    return with_blocks(port, change)


_gemma2_fault = partial(FAULTS.add, ports="gemma2", where="blocks.*.ff_norm", source=GEMMA2_NORMS)
_qk_norm_fault = partial(FAULTS.add, ports="openelm", where="blocks.*.attn.q")
_offset_fault = partial(FAULTS.add, via=with_model_config, where=EVERY_NORM, kinds="norm.offset")


@_offset_fault("norm offset left out", ports=GEMMA)
def norm_offset_left_out(config: cfg.ModelConfig) -> None:
    """Gemma's factor 1 + w is read as w, in every norm."""
    for norm in _norm_configs(config):
        norm.zero_centered = False


@_offset_fault("norm offset added", ports=PLAIN)
def norm_offset_where_there_is_none(config: cfg.ModelConfig) -> None:
    """The factor w is read as 1 + w, in every norm."""
    for norm in _norm_configs(config):
        norm.zero_centered = True


@FAULTS.add("norm eps off by 1 %", where=EVERY_NORM, kinds="norm.eps")
def norm_eps_one_percent_off(port: Port) -> Port:
    """Every norm's eps is 1 % too large."""
    return with_scaled(port, 1.01, "rms_norm_eps", "layer_norm_eps")


@FAULTS.add("norm eps 1e-6", where=EVERY_NORM, kinds="norm.eps")
def norm_eps_of_the_library(port: Port) -> Port:
    """The config's eps is overlooked; every norm has the library's 1e-6."""
    return with_config(port, rms_norm_eps=1e-6, layer_norm_eps=1e-6)


@FAULTS.add("final norm eps 1e-6", via=with_model, where="final_norm", kinds="norm.eps")
def final_norm_eps_of_the_library(model: Any) -> None:
    """The final norm alone has an eps of 1e-6."""
    model.final_norm.eps = 1e-6


@FAULTS.add(
    "norm eps outside the root",
    via=_with_pre_norm,
    ports=RMS,
    where="blocks.*.attn_norm",
    kinds="norm.eps_outside",
)
def norm_eps_outside_the_root(norm: Any, x: torch.Tensor) -> torch.Tensor:
    """x / (rms + eps) instead of x / sqrt(mean square + eps) before attention."""
    return x / (x.pow(2).mean(-1, keepdim=True).sqrt() + norm.eps) * _factor(norm)


@FAULTS.add(
    "LayerNorm for RMSNorm",
    via=_with_pre_norm_1,
    ports=RMS,
    where="blocks.1.attn_norm",
    kinds="norm.kind",
)
def layer_norm_for_rms_norm(norm: Any, x: torch.Tensor) -> torch.Tensor:
    """Block 1's norm before attention subtracts the mean."""
    return functional.layer_norm(x, (x.shape[-1],), _factor(norm), None, norm.eps)


@FAULTS.add(
    "RMSNorm for LayerNorm",
    via=_with_pre_norm_1,
    ports="phi2",
    where="blocks.1.attn_norm",
    kinds="norm.kind",
)
def rms_norm_for_layer_norm(norm: Any, x: torch.Tensor) -> torch.Tensor:
    """Block 1's norm does not subtract the mean."""
    scaled = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + norm.eps)
    return scaled * norm.weight + norm.bias


@FAULTS.add(
    "norm weight not loaded",
    where="blocks.1.attn_norm",
    kinds="norm.weight",
    source="litert-torch 28f44fa",
)
def norm_weight_not_loaded(port: Port) -> Port:
    """Block 1's norm keeps the neutral weight that it was built with.

    1, or 0 where the norm adds 1: what a module has before anything is loaded.
    """

    def change(state: State) -> None:
        name = "transformer_blocks.1.pre_atten_norm.weight"
        state[name] = torch.full_like(state[name], 0.0 if port.name in GEMMA else 1.0)

    return with_state(port, change)


@FAULTS.add(
    "norm bias left out",
    via=tensor("transformer_blocks.1.pre_atten_norm.bias"),
    ports="phi2",
    where="blocks.1.attn_norm",
    kinds="norm.bias",
)
def norm_bias_dropped(bias: torch.Tensor) -> torch.Tensor:
    """The bias of block 1's LayerNorm is zero."""
    return torch.zeros_like(bias)


@FAULTS.add("norm input rounded to bfloat16", via=_with_pre_norm, where="blocks.*.attn_norm")
def norm_in_bfloat16(norm: Any, x: torch.Tensor) -> torch.Tensor:
    """What enters the norm before attention is rounded to bfloat16."""
    return type(norm).forward(norm, in_bfloat16(x))


@FAULTS.add(
    "weight of another norm",
    via=with_state,
    ports=ONE_RESIDUAL_NORM,
    where="blocks.0.ff_norm",
    kinds="norm.weight",
)
def feed_forward_norm_with_the_attentions_weight(state: State) -> None:
    """Block 0's norm before the feed-forward has the weight of the one before attention."""
    block = "transformer_blocks.0."
    state[f"{block}post_atten_norm.weight"] = state[f"{block}pre_atten_norm.weight"]


@_gemma2_fault("post-attention norm behind the residual", via=with_blocks, kinds="norm.place")
def norm_after_attention_behind_the_residual(block: Any) -> None:
    """Gemma 2's norm after attention is applied to the sum with the residual."""

    def forward(x: torch.Tensor, rope: Any, mask: Any, pos: Any, cache: Any) -> Any:
        out, cache = block.atten_func(block.pre_atten_norm(x), rope, mask, pos, cache)
        x = block.post_atten_norm(x + out)
        return x + block.ff(x), cache

    block.forward = forward


@_gemma2_fault("post-attention norm left out", kinds="norm.missing")
def norm_after_attention_left_out(port: Port) -> Port:
    """Gemma 2's norm after attention passes its input."""
    return _without_norm(port, "post_atten_norm")


@FAULTS.add(
    "post-feed-forward norm left out",
    ports="gemma2",
    where="blocks.*.out",
    kinds="norm.missing",
    source=GEMMA2_NORMS,
)
def norm_after_feed_forward_left_out(port: Port) -> Port:
    """Gemma 2's norm after the feed-forward passes its input."""
    return _without_norm(port, "ff.post_ff_norm")


@FAULTS.add(
    "pre-feed-forward norm left out",
    ports=ONE_RESIDUAL_NORM,
    where="blocks.*.ff_norm",
    kinds="norm.missing",
)
def norm_before_feed_forward_left_out(port: Port) -> Port:
    """The feed-forward is fed with the residual stream as it is."""
    return _without_norm(port, "post_atten_norm")


@FAULTS.add("final norm left out", via=with_model, where="final_norm", kinds="norm.missing")
def final_norm_left_out(model: Any) -> None:
    """The LM head is fed with the residual stream as it is."""
    model.final_norm.forward = lambda x: x


@_qk_norm_fault("query norm left out", kinds="norm.missing")
def qk_norm_left_out(port: Port) -> Port:
    """q is rotated without being normed."""
    return _without_norm(port, "atten_func.query_norm")


@_qk_norm_fault("query and key norm after RoPE", via=with_blocks, kinds="norm.place")
def qk_norm_after_rope(block: Any) -> None:
    """q and k are normed after they are rotated; position 0 is exact."""
    q_norm, k_norm = block.atten_func.query_norm, block.atten_func.key_norm
    q_forward, k_forward = q_norm.forward, k_norm.forward
    q_norm.forward = k_norm.forward = lambda x: x

    def rotate_then_norm(rotate: Function, *args: Any) -> Any:
        q, k = rotate(*args)
        return q_forward(q), k_forward(k)

    patch_attention(block, rotate_then_norm, rotary, "apply_rope_inline")


@FAULTS.add(
    "query and key norm weights exchanged",
    via=with_state,
    ports="openelm",
    where="blocks.2.attn.q",
    kinds="norm.weight",
)
def qk_norm_weights_exchanged(state: State) -> None:
    """In block 2 q has the norm weight of k and the reverse."""
    block = "transformer_blocks.2.atten_func."
    q, k = f"{block}query_norm.weight", f"{block}key_norm.weight"
    state[q], state[k] = state[k], state[q]


@_qk_norm_fault("query norm over all heads", via=with_blocks, kinds="norm.place")
def qk_norm_over_all_heads(block: Any) -> None:
    """q is normed over all heads of a token at once.

    One mean square for all heads of a token instead of one for each head.
    """
    norm = block.atten_func.query_norm

    def forward(x: torch.Tensor) -> torch.Tensor:
        square = x.pow(2).mean((-2, -1), keepdim=True)
        return x * torch.rsqrt(square + norm.eps) * norm.weight

    norm.forward = forward
