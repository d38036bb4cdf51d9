"""Harmless changes: the model computes the same, and the check must not call it a fault.

What is right to say follows from what differs. Where no tap differs beyond rounding, nothing is
said. Where an inner tap or the KV cache differs although everything that follows from it agrees,
the check passes and tells of it: the cache's content is a true difference of what ships, but not of
the model, because only the same file ever reads it (see ``edgeverify.core.representation``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from litert_torch.generative.layers import kv_cache as kv_utils
from litert_torch.generative.layers import model_config as cfg
from litert_torch.generative.layers import rotary_position_embedding as rotary
from litert_torch.generative.layers import scaled_dot_product_attention as sdpa
from torch import nn
from torch.nn import functional

from edgeverify.suites.selftest.faults.attention import KERNEL, own_kernel, split_qkv, with_qkv
from edgeverify.suites.selftest.faults.changes import (
    Function,
    State,
    linear_layers,
    with_blocks,
    with_function,
    with_mask,
    with_model,
    with_model_config,
    with_rope,
    with_state,
)
from edgeverify.suites.selftest.faults.fault import Fault
from edgeverify.suites.selftest.faults.ports import ALL, GATED, GEMMA, RMS
from edgeverify_models.port import Port

KEYS = ("blocks.*.attn.q", "blocks.*.attn.k", "kv.*.k")
SHIFT = 3
NO_QK_NORM = tuple(name for name in ALL if name != "openelm")


def _names(state: State, suffix: str) -> list[str]:
    return [name for name in state if name.endswith(suffix)]


def _heads(port: Port, index: int) -> tuple[int, int, int]:
    """(query heads per group, groups, head_dim) of a block."""
    attention = port.model_config(port.hf_configs["tiny"]).block_config(index).attn_config
    groups = attention.num_query_groups
    return attention.num_heads // groups, groups, attention.head_dim


def _permuted_and_undone(port: Port) -> Port:
    """Heads change places in the weights and back again behind the projection."""

    def change(state: State) -> None:
        for name in _names(state, "qkv_projection.weight") + _names(state, "qkv_projection.bias"):
            state[name] = state[name].roll(8, 0)

    def undo(block: Any) -> None:
        projection = block.atten_func.qkv_projection
        forward = projection.forward
        projection.forward = lambda x: forward(x).roll(-8, -1)

    return with_blocks(with_state(port, change), undo)


def _groups_permuted(port: Port) -> Port:
    """Groups of heads change places in q, k, v and in the output projection's columns."""

    def change(state: State) -> None:
        for name in _names(state, "qkv_projection.weight") + _names(state, "qkv_projection.bias"):
            index = int(name.split(".")[1])
            per_group, _, dim = _heads(port, index)
            q, k, v = split_qkv(port, index, state[name])
            state[name] = torch.cat(
                (q.roll(per_group * dim, 0), k.roll(dim, 0), v.roll(dim, 0)),
            )
        for name in _names(state, "output_projection.weight"):
            per_group, _, dim = _heads(port, int(name.split(".")[1]))
            state[name] = state[name].roll(per_group * dim, 1)

    return with_state(port, change)


def _scale_moved(factor: float) -> Callable[[Port], Port]:
    """up is multiplied, down divided."""

    def change(state: State) -> None:
        for name in _names(state, "ff.w3.weight"):
            state[name] = state[name] * factor
        for name in _names(state, "ff.w2.weight"):
            state[name] = state[name] / factor

    return lambda port: with_state(port, change)


def _values_scaled(port: Port) -> Port:
    """v, with its bias, is multiplied by 3 and the output projection divided."""
    scaled = with_qkv(port, lambda q, k, v: (q, k, 3 * v))

    def change(state: State) -> None:
        for name in _names(state, "output_projection.weight"):
            state[name] = state[name] / 3

    return with_state(scaled, change)


def _queries_and_keys_scaled(port: Port) -> Port:
    return with_qkv(port, lambda q, k, v: (2 * q, k / 2, v))


def _scale_in_the_query(kernel: Function) -> Function:
    def changed(q: Any, k: Any, v: Any, size: int, **given: Any) -> Any:
        scale = given.pop("scale", None) or size**-0.5
        return kernel(q * scale, k, v, size, scale=1.0, **given)

    return changed


def _shifted_rope(build: Function) -> Function:
    return lambda pos, *rest: build(pos + SHIFT, *rest)


def _rope_in_float64(build: Function) -> Function:
    def built(pos: torch.Tensor, elements: int, base: float) -> Any:
        exponents = torch.arange(0, elements, 2).double() / elements
        angles = pos[None, :, None].double() / float(base) ** exponents
        return angles.cos().float(), angles.sin().float()

    return built


def _rope_of_transformers(build: Function) -> Function:
    """Inverse frequencies first, then their product with the position."""

    def built(pos: torch.Tensor, elements: int, base: float) -> Any:
        inverse = 1.0 / base ** (torch.arange(0, elements, 2).float() / elements)
        angles = pos[None, :, None].float() * inverse
        return angles.cos(), angles.sin()

    return built


def _rotated_by_halves(rotate: Function) -> Function:
    """x · cos + rotate_half(x) · sin, as transformers writes it."""

    def rotated(q: torch.Tensor, k: torch.Tensor, cos: Any, sin: Any) -> Any:
        size = cos.shape[-1]
        c, s = (torch.cat((t, t), -1)[:, :, None] for t in (cos, sin))

        def turn(x: torch.Tensor) -> torch.Tensor:
            a, b, rest = x[..., :size], x[..., size : 2 * size], x[..., 2 * size :]
            both = torch.cat((a, b), -1) * c + torch.cat((-b, a), -1) * s
            return torch.cat((both, rest), -1)

        return turn(q), turn(k)

    return rotated


def _up_times_gate(port: Port) -> Port:
    def change(block: Any) -> None:
        ff = block.ff

        def forward(x: torch.Tensor) -> torch.Tensor:
            x = ff.pre_ff_norm(x)
            return ff.post_ff_norm(ff.w2(ff.w3(x) * ff.act(ff.w1(x))))

        ff.forward = forward

    return with_blocks(port, change)


def _unfused_qkv(port: Port) -> Port:
    def change(block: Any) -> None:
        projection = block.atten_func.qkv_projection

        def forward(x: torch.Tensor) -> torch.Tensor:
            weights = projection.weight.tensor_split(3)
            biases: Any = (None, None, None)
            if projection.bias is not None:
                biases = projection.bias.tensor_split(3)
            parts = [functional.linear(x, w, b) for w, b in zip(weights, biases, strict=True)]
            return torch.cat(parts, -1)

        projection.forward = forward

    return with_blocks(port, change)


def _channels_permuted(port: Port) -> Port:
    """The inner channels of every feed-forward stand in the reverse order."""

    def change(state: State) -> None:
        for name in [n for n in state if ".ff.w" in n]:
            leaf = name.split(".ff.")[1]
            if leaf == "w2.weight":
                state[name] = state[name].flip(1)
            elif leaf.startswith(("w1", "w3")):
                # Of OpenELM w1 is gate and up, one behind the other.
                halves = state[name].chunk(2 if port.name == "openelm" else 1)
                state[name] = torch.cat([half.flip(0) for half in halves])

    return with_state(port, change)


def _sums_backwards(port: Port) -> Port:
    """Every linear layer adds its products from the last to the first."""

    def reverse(layer: nn.Linear) -> None:
        layer.forward = lambda x: functional.linear(  # type: ignore[method-assign,assignment]
            x.flip(-1), layer.weight.flip(-1), layer.bias
        )

    def change(model: Any) -> None:
        for layer in linear_layers(model):
            reverse(layer)

    return with_model(port, change)


def _norm_by_division(port: Port) -> Port:
    def change(model: Any) -> None:
        for module in model.modules():
            if type(module).__name__ == "RMSNorm":
                module.forward = _divider(module)

    return with_model(port, change)


def _divider(norm: Any) -> Function:
    def forward(x: torch.Tensor) -> torch.Tensor:
        weight = 1 + norm.weight if norm.zero_centered_gamma else norm.weight
        return weight * (x / (x.pow(2).mean(-1, keepdim=True) + norm.eps).sqrt())

    return forward


def _norm_folded(port: Port) -> Port:
    """The weight of the norm before attention is multiplied into q, k and v."""
    centred = port.name in GEMMA

    def change(state: State) -> None:
        for name in _names(state, "pre_atten_norm.weight"):
            weight = state[name] + 1 if centred else state[name]
            target = name.replace("pre_atten_norm", "atten_func.qkv_projection")
            state[target] = state[target] * weight
            state[name] = torch.zeros_like(weight) if centred else torch.ones_like(weight)

    return with_state(port, change)


def _embedding_scale_in_the_table(port: Port) -> Port:
    scale = port.hf_configs["tiny"]["hidden_size"] ** 0.5

    def change(state: State) -> None:
        state["tok_embedding.weight"] = state["tok_embedding.weight"] * scale

    def without(config: cfg.ModelConfig) -> None:
        config.embedding_scale = None

    return with_state(with_model_config(port, without), change)


def _bias_of_unrotated_keys(port: Port) -> Port:
    """Zero: q · b is the same for every key, and softmax does not see what is the same."""
    hf = port.hf_configs["tiny"]
    dim = hf["hidden_size"] // hf["num_attention_heads"]
    rotated = int(hf["partial_rotary_factor"] * dim)

    def change(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Any:
        if k.dim() == 1:
            k = k.reshape(-1, dim).clone()
            k[:, rotated:] = 0
            k = k.flatten()
        return q, k, v

    return with_qkv(port, change)


def _softmax_by_powers_of_two(scores: torch.Tensor, dim: int) -> torch.Tensor:
    powers = torch.exp2((scores - scores.amax(dim, keepdim=True)) * 1.4426950408889634)
    return powers / powers.sum(dim, keepdim=True)


def _cache_by_index(update: Function) -> Function:
    def changed(cache: Any, pos: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Any:
        update(cache, pos, k, v)
        rows = pos.long()
        return kv_utils.KVCacheEntry(
            cache.k_cache.index_copy(1, rows, k),
            cache.v_cache.index_copy(1, rows, v),
            cache.kv_layout,
        )

    return changed


def _repeated_heads(kernel: Function) -> Function:
    """KV heads are repeated before the kernel, in the right order."""

    def changed(q: Any, k: Any, v: Any, *args: Any, **given: Any) -> Any:
        times = q.shape[2] // k.shape[2]
        k, v = k.repeat_interleave(times, 2), v.repeat_interleave(times, 2)
        return kernel(q, k, v, *args, **given)

    return changed


SAME_ROUNDING = "the same products in the same order"
ROUNDING = "only the rounding differs, as between any two right implementations"
CACHE_TOLD = "; the cache differs, and that is told"
FAULTS = (
    Fault(
        name="heads_permuted_and_undone",
        area="attention",
        description="The rows of qkv are moved, and moved back behind the projection.",
        cause="",
        ports=ALL,
        where=(),
        port=_permuted_and_undone,
        harmless=SAME_ROUNDING,
    ),
    Fault(
        name="head_groups_permuted",
        area="attention",
        description="Groups of heads change places in q, k, v and in the output projection.",
        cause="",
        ports=ALL,
        where=(*KEYS, "blocks.*.attn.v", "kv.*.v"),
        port=_groups_permuted,
        harmless="heads are summed over" + CACHE_TOLD,
    ),
    Fault(
        name="up_and_down_scaled_by_four",
        area="feed-forward",
        description="up is multiplied by 4, down divided by 4.",
        cause="",
        ports=GATED,
        where=(),
        port=_scale_moved(4.0),
        harmless="a power of two changes no rounding",
    ),
    Fault(
        name="up_and_down_scaled_by_three",
        area="feed-forward",
        description="up is multiplied by 3, down divided by 3.",
        cause="",
        ports=GATED,
        where=(),
        port=_scale_moved(3.0),
        harmless=ROUNDING,
    ),
    Fault(
        name="values_scaled",
        area="attention",
        description="v is multiplied by 3, the output projection divided by 3.",
        cause="",
        ports=ALL,
        where=("blocks.*.attn.v", "kv.*.v"),
        port=_values_scaled,
        harmless="attention is linear in v" + CACHE_TOLD,
    ),
    Fault(
        name="queries_and_keys_scaled",
        area="attention",
        description="q is multiplied by 2, k divided by 2.",
        cause="",
        ports=NO_QK_NORM,
        where=KEYS,
        port=_queries_and_keys_scaled,
        harmless="scores are products of q and k" + CACHE_TOLD,
    ),
    Fault(
        name="score_scale_in_the_query",
        area="attention",
        description="q is scaled before the kernel, which then does not scale.",
        cause="",
        ports=ALL,
        where=("blocks.*.attn.q",),
        port=lambda port: with_function(port, sdpa, KERNEL, _scale_in_the_query),
        harmless="the scale is applied once either way; q differs, and that is told",
    ),
    Fault(
        name="positions_shifted",
        area="rope",
        description=f"Positions are counted from {SHIFT} on.",
        cause="",
        ports=ALL,
        where=KEYS,
        port=lambda port: with_rope(port, _shifted_rope),
        harmless="RoPE makes scores of differences of positions alone" + CACHE_TOLD,
    ),
    Fault(
        name="rope_in_float64",
        area="rope",
        description="Angles are computed in float64.",
        cause="",
        ports=ALL,
        where=(),
        port=lambda port: with_rope(port, _rope_in_float64),
        harmless="it is nearer to the truth",
    ),
    Fault(
        name="rope_by_inverse_frequencies",
        area="rope",
        description="Angles are position · (1 / base ** e), as in transformers.",
        cause="",
        ports=ALL,
        where=(),
        port=lambda port: with_rope(port, _rope_of_transformers),
        harmless=ROUNDING,
    ),
    Fault(
        name="rope_by_rotated_halves",
        area="rope",
        description="x · cos + rotate_half(x) · sin, as in transformers.",
        cause="",
        ports=ALL,
        where=(),
        port=lambda port: with_function(port, rotary, "apply_rope_inline", _rotated_by_halves),
        harmless=SAME_ROUNDING,
    ),
    Fault(
        name="up_times_gate",
        area="feed-forward",
        description="up · act(gate) instead of act(gate) · up.",
        cause="",
        ports=GATED,
        where=(),
        port=_up_times_gate,
        harmless="multiplication commutes, in float32, too",
    ),
    Fault(
        name="qkv_in_three_products",
        area="attention",
        description="The fused projection is computed in three parts.",
        cause="",
        ports=ALL,
        where=(),
        port=_unfused_qkv,
        harmless=ROUNDING,
    ),
    Fault(
        name="inner_channels_reversed",
        area="feed-forward",
        description="The inner channels of every feed-forward stand in the reverse order.",
        cause="",
        ports=ALL,
        where=(),
        port=_channels_permuted,
        harmless="channels are summed over",
    ),
    Fault(
        name="sums_taken_backwards",
        area="feed-forward",
        description="Every linear layer sums from the last product to the first.",
        cause="",
        ports=ALL,
        where=(),
        port=_sums_backwards,
        harmless=ROUNDING,
    ),
    Fault(
        name="norm_by_division",
        area="norm",
        description="x / sqrt(mean square + eps) instead of x · rsqrt(...).",
        cause="",
        ports=RMS,
        where=(),
        port=_norm_by_division,
        harmless=ROUNDING,
    ),
    Fault(
        name="norm_weight_in_the_projection",
        area="norm",
        description="The weight of the norm before attention is multiplied into q, k and v.",
        cause="",
        ports=RMS,
        where=("blocks.*.attn_norm",),
        port=_norm_folded,
        harmless="(x · w) W = x (w W); what enters the projection differs, and that is told",
    ),
    Fault(
        name="embedding_scale_in_the_table",
        area="embedding",
        description="Gemma's table is scaled once instead of its rows each time.",
        cause="",
        ports=GEMMA,
        where=(),
        port=_embedding_scale_in_the_table,
        harmless="each element is multiplied by the same number and rounded once",
    ),
    Fault(
        name="bias_of_unrotated_keys_left_out",
        area="attention",
        description="Phi-2's bias of k is zero where RoPE does not rotate.",
        cause="",
        ports=("phi2",),
        where=("blocks.*.attn.k", "kv.*.k"),
        port=_bias_of_unrotated_keys,
        harmless="q · b is the same for every key, and softmax does not see it" + CACHE_TOLD,
    ),
    Fault(
        name="softmax_by_powers_of_two",
        area="attention",
        description="exp(x) is computed as 2 ** (x · log2 e), as fast kernels do.",
        cause="",
        ports=ALL,
        where=(),
        port=own_kernel(softmax=_softmax_by_powers_of_two),
        harmless=ROUNDING,
    ),
    Fault(
        name="kv_heads_repeated_before_the_kernel",
        area="attention",
        description="KV heads are repeated before the kernel instead of inside.",
        cause="",
        ports=ALL,
        where=(),
        port=lambda port: with_function(port, sdpa, KERNEL, _repeated_heads),
        harmless=SAME_ROUNDING,
    ),
    Fault(
        name="mask_of_large_numbers",
        area="mask",
        description="Hidden scores are lowered by 1e9 instead of to minus infinity.",
        cause="",
        ports=ALL,
        where=(),
        port=lambda port: with_mask(port, lambda mask: mask.clamp(min=-1e9)),
        harmless="exp(-1e9) is 0 in float32",
    ),
    Fault(
        name="cache_written_by_index",
        area="cache",
        description="Rows are copied by their index instead of by a slice update.",
        cause="",
        ports=ALL,
        where=(),
        port=lambda port: with_function(port, kv_utils, "update", _cache_by_index),
        harmless="the same rows get the same values",
    ),
)
