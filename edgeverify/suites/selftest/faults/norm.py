"""Faults of the norms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from litert_torch.generative.layers import model_config as cfg
from litert_torch.generative.layers import rotary_position_embedding as rotary
from torch.nn import functional

from edgeverify.suites.selftest.faults.changes import (
    Function,
    State,
    in_bfloat16,
    patch_attention,
    with_blocks,
    with_config,
    with_model,
    with_model_config,
    with_scaled,
    with_state,
)
from edgeverify.suites.selftest.faults.fault import Fault
from edgeverify.suites.selftest.faults.ports import ALL, GEMMA, LLAMA, ONE_RESIDUAL_NORM, RMS
from edgeverify_models.port import Port

EPS = ("rms_norm_eps", "layer_norm_eps")
EVERY_NORM = ("blocks.*.attn_norm", "final_norm")
PLAIN = (*LLAMA, "openelm")  # RMSNorm without Gemma's offset


def _norm_configs(config: cfg.ModelConfig) -> list[cfg.NormalizationConfig]:
    found = [config.final_norm_config]
    for index in range(config.num_layers):
        block = config.block_config(index)
        found += [block.pre_attention_norm_config, block.post_attention_norm_config]
        found += [block.ff_config.pre_ff_norm_config, block.ff_config.post_ff_norm_config]
        found += [block.attn_config.query_norm_config, block.attn_config.key_norm_config]
    return [norm for norm in found if norm is not None]


def _offset(value: bool) -> Callable[[Port], Port]:
    def change(config: cfg.ModelConfig) -> None:
        for norm in _norm_configs(config):
            norm.zero_centered = value

    return lambda port: with_model_config(port, change)


def _factor(norm: Any) -> torch.Tensor:
    return 1 + norm.weight if getattr(norm, "zero_centered_gamma", False) else norm.weight


def _pre_norm(
    forward: Callable[[Any, torch.Tensor], torch.Tensor], blocks: tuple[int, ...] | None = None
) -> Callable[[Port], Port]:
    """The norm before the attention is ``forward(norm, x)``."""

    def change(block: Any) -> None:
        norm = block.pre_atten_norm
        block.pre_atten_norm.forward = lambda x: forward(norm, x)

    return lambda port: with_blocks(port, change, blocks)


def _layer_norm(norm: Any, x: torch.Tensor) -> torch.Tensor:
    return functional.layer_norm(x, (x.shape[-1],), _factor(norm), None, norm.eps)


def _rms_norm(norm: Any, x: torch.Tensor) -> torch.Tensor:
    scaled = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + norm.eps)
    return scaled * norm.weight + norm.bias


def _eps_outside_the_root(norm: Any, x: torch.Tensor) -> torch.Tensor:
    return x / (x.pow(2).mean(-1, keepdim=True).sqrt() + norm.eps) * _factor(norm)


def _rounded(norm: Any, x: torch.Tensor) -> torch.Tensor:
    return type(norm).forward(norm, in_bfloat16(x))


def _neutral_weight(port: Port) -> Port:
    """1, or 0 where the norm adds 1: what a module holds before anything is loaded."""

    def change(state: State) -> None:
        name = "transformer_blocks.1.pre_atten_norm.weight"
        state[name] = torch.full_like(state[name], 0.0 if port.name in GEMMA else 1.0)

    return with_state(port, change)


def _bias_dropped(port: Port) -> Port:
    def change(state: State) -> None:
        name = "transformer_blocks.1.pre_atten_norm.bias"
        state[name] = torch.zeros_like(state[name])

    return with_state(port, change)


def _other_norms_weight(port: Port) -> Port:
    def change(state: State) -> None:
        block = "transformer_blocks.0."
        state[f"{block}post_atten_norm.weight"] = state[f"{block}pre_atten_norm.weight"]

    return with_state(port, change)


def _final_eps(port: Port) -> Port:
    def change(model: Any) -> None:
        model.final_norm.eps = 1e-6

    return with_model(port, change)


def _final_norm_left_out(port: Port) -> Port:
    def change(model: Any) -> None:
        model.final_norm.forward = lambda x: x

    return with_model(port, change)


def _post_norm_behind_the_residual(port: Port) -> Port:
    def change(block: Any) -> None:
        def forward(x: torch.Tensor, rope: Any, mask: Any, pos: Any, cache: Any) -> Any:
            out, cache = block.atten_func(block.pre_atten_norm(x), rope, mask, pos, cache)
            x = block.post_atten_norm(x + out)
            return x + block.ff(x), cache

        block.forward = forward

    return with_blocks(port, change)


def _identity(path: str) -> Callable[[Port], Port]:
    """A norm that is built and loaded, but passes its input."""

    def change(block: Any) -> None:
        block.get_submodule(path).forward = lambda x: x

    return lambda port: with_blocks(port, change)


def _qk_norm_after_rope(port: Port) -> Port:
    def change(block: Any) -> None:
        q_norm, k_norm = block.atten_func.query_norm, block.atten_func.key_norm
        q_forward, k_forward = q_norm.forward, k_norm.forward
        q_norm.forward = k_norm.forward = lambda x: x

        def make(rotate: Function) -> Function:
            def rotate_then_norm(*args: Any) -> Any:
                q, k = rotate(*args)
                return q_forward(q), k_forward(k)

            return rotate_then_norm

        patch_attention(block, rotary, "apply_rope_inline", make)

    return with_blocks(port, change)


def _qk_norm_weights_exchanged(port: Port) -> Port:
    def change(state: State) -> None:
        block = "transformer_blocks.2.atten_func."
        names = f"{block}query_norm.weight", f"{block}key_norm.weight"
        state[names[0]], state[names[1]] = state[names[1]], state[names[0]]

    return with_state(port, change)


def _qk_norm_over_all_heads(port: Port) -> Port:
    """One mean square for all heads of a token instead of one for each head."""

    def change(block: Any) -> None:
        norm = block.atten_func.query_norm

        def forward(x: torch.Tensor) -> torch.Tensor:
            square = x.pow(2).mean((-2, -1), keepdim=True)
            return x * torch.rsqrt(square + norm.eps) * norm.weight

        norm.forward = forward

    return with_blocks(port, change)


FAULTS = (
    Fault(
        name="norm_offset_left_out",
        area="norm",
        description="Gemma's factor 1 + w is read as w, in every norm.",
        cause="norm offset left out",
        ports=GEMMA,
        where=EVERY_NORM,
        port=_offset(False),
    ),
    Fault(
        name="norm_offset_where_there_is_none",
        area="norm",
        description="The factor w is read as 1 + w, in every norm.",
        cause="norm offset added",
        ports=PLAIN,
        where=EVERY_NORM,
        port=_offset(True),
    ),
    Fault(
        name="norm_eps_one_percent_off",
        area="norm",
        description="Every norm's eps is 1 % too large.",
        cause="norm eps off by 1 %",
        ports=ALL,
        where=EVERY_NORM,
        port=lambda port: with_scaled(port, 1.01, *EPS),
    ),
    Fault(
        name="norm_eps_of_the_library",
        area="norm",
        description="The config's eps is overlooked; every norm has the library's 1e-6.",
        cause="norm eps 1e-6",
        ports=ALL,
        where=EVERY_NORM,
        port=lambda port: with_config(port, rms_norm_eps=1e-6, layer_norm_eps=1e-6),
    ),
    Fault(
        name="final_norm_eps_of_the_library",
        area="norm",
        description="The final norm alone has an eps of 1e-6.",
        cause="final norm eps 1e-6",
        ports=ALL,
        where=("final_norm",),
        port=_final_eps,
    ),
    Fault(
        name="norm_eps_outside_the_root",
        area="norm",
        description="x / (rms + eps) instead of x / sqrt(mean square + eps) before attention.",
        cause="norm eps outside the root",
        ports=RMS,
        where=("blocks.*.attn_norm",),
        port=_pre_norm(_eps_outside_the_root),
    ),
    Fault(
        name="layer_norm_for_rms_norm",
        area="norm",
        description="Block 1's norm before attention subtracts the mean.",
        cause="LayerNorm for RMSNorm",
        ports=RMS,
        where=("blocks.1.attn_norm",),
        port=_pre_norm(_layer_norm, (1,)),
    ),
    Fault(
        name="rms_norm_for_layer_norm",
        area="norm",
        description="Block 1's norm does not subtract the mean.",
        cause="RMSNorm for LayerNorm",
        ports=("phi2",),
        where=("blocks.1.attn_norm",),
        port=_pre_norm(_rms_norm, (1,)),
    ),
    Fault(
        name="norm_weight_not_loaded",
        area="norm",
        description="Block 1's norm keeps the neutral weight that it was built with.",
        cause="norm weight not loaded",
        ports=ALL,
        where=("blocks.1.attn_norm",),
        port=_neutral_weight,
        source="litert-torch 28f44fa",
    ),
    Fault(
        name="norm_bias_dropped",
        area="norm",
        description="The bias of block 1's LayerNorm is zero.",
        cause="norm bias left out",
        ports=("phi2",),
        where=("blocks.1.attn_norm",),
        port=_bias_dropped,
    ),
    Fault(
        name="norm_in_bfloat16",
        area="norm",
        description="What enters the norm before attention is rounded to bfloat16.",
        cause="norm input rounded to bfloat16",
        ports=ALL,
        where=("blocks.*.attn_norm",),
        port=_pre_norm(_rounded),
    ),
    Fault(
        name="feed_forward_norm_with_the_attentions_weight",
        area="norm",
        description="Block 0's norm before the feed-forward has the weight of the one before "
        "attention.",
        cause="weight of another norm",
        ports=ONE_RESIDUAL_NORM,
        where=("blocks.0.ff_norm",),
        port=_other_norms_weight,
    ),
    Fault(
        name="norm_after_attention_behind_the_residual",
        area="norm",
        description="Gemma 2's norm after attention is applied to the sum with the residual.",
        cause="post-attention norm behind the residual",
        ports=("gemma2",),
        where=("blocks.*.ff_norm",),
        port=_post_norm_behind_the_residual,
        source="litert-torch addf08d, 7618edc",
    ),
    Fault(
        name="norm_after_attention_left_out",
        area="norm",
        description="Gemma 2's norm after attention passes its input.",
        cause="post-attention norm left out",
        ports=("gemma2",),
        where=("blocks.*.ff_norm",),
        port=_identity("post_atten_norm"),
        source="litert-torch addf08d, 7618edc",
    ),
    Fault(
        name="norm_after_feed_forward_left_out",
        area="norm",
        description="Gemma 2's norm after the feed-forward passes its input.",
        cause="post-feed-forward norm left out",
        ports=("gemma2",),
        where=("blocks.*.out",),
        port=_identity("ff.post_ff_norm"),
        source="litert-torch addf08d, 7618edc",
    ),
    Fault(
        name="norm_before_feed_forward_left_out",
        area="norm",
        description="The feed-forward is fed with the residual stream as it is.",
        cause="pre-feed-forward norm left out",
        ports=ONE_RESIDUAL_NORM,
        where=("blocks.*.ff_norm",),
        port=_identity("post_atten_norm"),
    ),
    Fault(
        name="final_norm_left_out",
        area="norm",
        description="The LM head is fed with the residual stream as it is.",
        cause="final norm left out",
        ports=ALL,
        where=("final_norm",),
        port=_final_norm_left_out,
    ),
    Fault(
        name="qk_norm_left_out",
        area="norm",
        description="q is rotated without being normed.",
        cause="query norm left out",
        ports=("openelm",),
        where=("blocks.*.attn.q",),
        port=_identity("atten_func.query_norm"),
    ),
    Fault(
        name="qk_norm_after_rope",
        area="norm",
        description="q and k are normed after they are rotated; position 0 is exact.",
        cause="query and key norm after RoPE",
        ports=("openelm",),
        where=("blocks.*.attn.q",),
        port=_qk_norm_after_rope,
    ),
    Fault(
        name="qk_norm_weights_exchanged",
        area="norm",
        description="In block 2 q has the norm weight of k and the reverse.",
        cause="query and key norm weights exchanged",
        ports=("openelm",),
        where=("blocks.2.attn.q",),
        port=_qk_norm_weights_exchanged,
    ),
    Fault(
        name="qk_norm_over_all_heads",
        area="norm",
        description="q is normed over all heads of a token at once.",
        cause="query norm over all heads",
        ports=("openelm",),
        where=("blocks.*.attn.q",),
        port=_qk_norm_over_all_heads,
    ),
)
