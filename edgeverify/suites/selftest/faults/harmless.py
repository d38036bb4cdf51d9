"""Harmless changes: the model computes the same, and the check must not call it a fault.

What is right to say follows from what differs. Where no tap differs beyond rounding, nothing is
said. Where an inner tap or the KV cache differs although everything that follows from it agrees,
the check passes and mentions it: the cache's content is a true difference of what ships, but not of
the model, because only the same file ever reads it (see ``edgeverify.core.representation``).
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from litert_torch.generative.layers import kv_cache as kv_utils
from litert_torch.generative.layers import model_config as cfg
from torch import nn
from torch.nn import functional

from edgeverify.suites.selftest.faults.attention import with_kernel, with_softmax
from edgeverify.suites.selftest.faults.cache import with_update
from edgeverify.suites.selftest.faults.fault import Faults
from edgeverify.suites.selftest.faults.feed_forward import with_inner
from edgeverify.suites.selftest.faults.port_changes import (
    Function,
    State,
    attention_config,
    linear_layers,
    split_qkv,
    with_blocks,
    with_mask,
    with_model,
    with_model_config,
    with_qkv,
    with_rope,
    with_state,
)
from edgeverify.suites.selftest.faults.ports import ALL, GATED, GEMMA, RMS
from edgeverify.suites.selftest.faults.rope import with_rotation
from edgeverify_models.port import Port

FAULTS = Faults()
KEYS = "blocks.*.attn.q blocks.*.attn.k kv.*.k"
VALUES = "blocks.*.attn.v kv.*.v"
SAME_ROUNDING = "the same products in the same order"
ROUNDING = "only the rounding differs, as between any two right implementations"
CACHE_DIFFERS = "; the cache differs, and that is told"


def _names(state: State, suffix: str) -> list[str]:
    return [name for name in state if name.endswith(suffix)]


def _qkv_names(state: State) -> list[str]:
    return _names(state, "qkv_projection.weight") + _names(state, "qkv_projection.bias")


@FAULTS.add(area="attention", harmless=SAME_ROUNDING)
def heads_permuted_and_undone(port: Port) -> Port:
    """The rows of qkv are moved, and moved back behind the projection."""

    def change(state: State) -> None:
        for name in _qkv_names(state):
            state[name] = state[name].roll(8, 0)

    def undo(block: Any) -> None:
        projection = block.atten_func.qkv_projection
        forward = projection.forward
        projection.forward = lambda x: forward(x).roll(-8, -1)

    return with_blocks(with_state(port, change), undo)


@FAULTS.add(
    area="attention",
    where=f"{KEYS} {VALUES}",
    harmless="heads are summed over" + CACHE_DIFFERS,
)
def head_groups_permuted(port: Port) -> Port:
    """Groups of heads change places in q, k, v and in the output projection."""

    def sizes(name: str) -> tuple[int, int, int]:
        """(block, rows of a group's queries, head_dim)."""
        index = int(name.split(".")[1])
        attention = attention_config(port, index)
        dim = attention.head_dim
        return index, attention.num_heads // attention.num_query_groups * dim, dim

    def change(state: State) -> None:
        for name in _qkv_names(state):
            index, group, dim = sizes(name)
            q, k, v = split_qkv(port, index, state[name])
            state[name] = torch.cat((q.roll(group, 0), k.roll(dim, 0), v.roll(dim, 0)))
        for name in _names(state, "output_projection.weight"):
            state[name] = state[name].roll(sizes(name)[1], 1)

    return with_state(port, change)


def _scale_up_and_down(state: State, factor: float) -> None:
    for name in _names(state, "ff.w3.weight"):
        state[name] = state[name] * factor
    for name in _names(state, "ff.w2.weight"):
        state[name] = state[name] / factor


@FAULTS.add(
    area="feed-forward",
    via=with_state,
    ports=GATED,
    harmless="a power of two changes no rounding",
)
def up_and_down_scaled_by_four(state: State) -> None:
    """up is multiplied by 4, down divided by 4."""
    _scale_up_and_down(state, 4.0)


@FAULTS.add(area="feed-forward", via=with_state, ports=GATED, harmless=ROUNDING)
def up_and_down_scaled_by_three(state: State) -> None:
    """up is multiplied by 3, down divided by 3."""
    _scale_up_and_down(state, 3.0)


@FAULTS.add(area="attention", where=VALUES, harmless="attention is linear in v" + CACHE_DIFFERS)
def values_scaled(port: Port) -> Port:
    """v is multiplied by 3, the output projection divided by 3.

    v's bias is multiplied, too.
    """

    def change(state: State) -> None:
        for name in _names(state, "output_projection.weight"):
            state[name] = state[name] / 3

    return with_state(with_qkv(port, lambda q, k, v: (q, k, 3 * v)), change)


@FAULTS.add(
    area="attention",
    via=with_qkv,
    ports=tuple(name for name in ALL if name != "openelm"),  # which norms q and k
    where=KEYS,
    harmless="scores are products of q and k" + CACHE_DIFFERS,
)
def queries_and_keys_scaled(q: Any, k: Any, v: Any) -> Any:
    """q is multiplied by 2, k divided by 2."""
    return 2 * q, k / 2, v


@FAULTS.add(
    area="attention",
    via=with_kernel,
    where="blocks.*.attn.q",
    harmless="the scale is applied once either way; q differs, and that is told",
)
def score_scale_in_the_query(
    kernel: Function, q: Any, k: Any, v: Any, size: int, **given: Any
) -> Any:
    """q is scaled before the kernel, which then does not scale."""
    scale = given.pop("scale", None) or size**-0.5
    return kernel(q * scale, k, v, size, scale=1.0, **given)


@FAULTS.add(
    area="rope",
    via=with_rope,
    where=KEYS,
    harmless="RoPE makes scores of differences of positions alone" + CACHE_DIFFERS,
)
def positions_shifted(build: Function, pos: Any, elements: int, base: float) -> Any:
    """Positions are counted from 3 on."""
    return build(pos + 3, elements, base)


@FAULTS.add(area="rope", via=with_rope, harmless="it is nearer to the truth")
def rope_in_float64(build: Function, pos: Any, elements: int, base: float) -> Any:
    """Angles are computed in float64."""
    exponents = torch.arange(0, elements, 2).double() / elements
    angles = pos[None, :, None].double() / float(base) ** exponents
    return angles.cos().float(), angles.sin().float()


@FAULTS.add(area="rope", via=with_rope, harmless=ROUNDING)
def rope_by_inverse_frequencies(build: Function, pos: Any, elements: int, base: float) -> Any:
    """Angles are position · (1 / base ** e), as in transformers.

    Inverse frequencies first, then their product with the position.
    """
    inverse = 1.0 / base ** (torch.arange(0, elements, 2).float() / elements)
    angles = pos[None, :, None].float() * inverse
    return angles.cos(), angles.sin()


@FAULTS.add(area="rope", via=with_rotation, harmless=SAME_ROUNDING)
def rope_by_rotated_halves(rotate: Function, q: Any, k: Any, cos: Any, sin: Any) -> Any:
    """x · cos + rotate_half(x) · sin, as in transformers."""
    size = cos.shape[-1]
    c, s = (torch.cat((t, t), -1)[:, :, None] for t in (cos, sin))

    def turn(x: torch.Tensor) -> torch.Tensor:
        a, b, rest = x[..., :size], x[..., size : 2 * size], x[..., 2 * size :]
        both = torch.cat((a, b), -1) * c + torch.cat((-b, a), -1) * s
        return torch.cat((both, rest), -1)

    return turn(q), turn(k)


@FAULTS.add(
    area="feed-forward",
    via=with_inner,
    ports=GATED,
    harmless="multiplication commutes, in float32, too",
)
def up_times_gate(ff: Any, x: torch.Tensor) -> torch.Tensor:
    """up · act(gate) instead of act(gate) · up."""
    return ff.w3(x) * ff.act(ff.w1(x))


@FAULTS.add(area="attention", via=with_blocks, harmless=ROUNDING)
def qkv_in_three_products(block: Any) -> None:
    """The fused projection is computed in three parts."""
    projection = block.atten_func.qkv_projection

    def forward(x: torch.Tensor) -> torch.Tensor:
        weights = projection.weight.tensor_split(3)
        biases: Any = (None, None, None)
        if projection.bias is not None:
            biases = projection.bias.tensor_split(3)
        parts = [functional.linear(x, w, b) for w, b in zip(weights, biases, strict=True)]
        return torch.cat(parts, -1)

    projection.forward = forward


@FAULTS.add(area="feed-forward", harmless="channels are summed over")
def inner_channels_reversed(port: Port) -> Port:
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


def _linear_backwards(layer: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    return functional.linear(x.flip(-1), layer.weight.flip(-1), layer.bias)


@FAULTS.add(area="feed-forward", via=with_model, harmless=ROUNDING)
def sums_taken_backwards(model: Any) -> None:
    """Every linear layer sums from the last product to the first."""
    for layer in linear_layers(model):
        layer.forward = partial(_linear_backwards, layer)  # type: ignore[method-assign]


def _divide_by_root(norm: Any, x: torch.Tensor) -> torch.Tensor:
    weight = 1 + norm.weight if norm.zero_centered_gamma else norm.weight
    return weight * (x / (x.pow(2).mean(-1, keepdim=True) + norm.eps).sqrt())


@FAULTS.add(area="norm", via=with_model, ports=RMS, harmless=ROUNDING)
def norm_by_division(model: Any) -> None:
    """x / sqrt(mean square + eps) instead of x · rsqrt(...)."""
    for module in model.modules():
        if type(module).__name__ == "RMSNorm":
            module.forward = partial(_divide_by_root, module)


@FAULTS.add(
    area="norm",
    ports=RMS,
    where="blocks.*.attn_norm",
    harmless="(x · w) W = x (w W); what enters the projection differs, and that is told",
)
def norm_weight_in_the_projection(port: Port) -> Port:
    """The weight of the norm before attention is multiplied into q, k and v."""
    centred = port.name in GEMMA

    def change(state: State) -> None:
        for name in _names(state, "pre_atten_norm.weight"):
            weight = state[name] + 1 if centred else state[name]
            target = name.replace("pre_atten_norm", "atten_func.qkv_projection")
            state[target] = state[target] * weight
            state[name] = torch.zeros_like(weight) if centred else torch.ones_like(weight)

    return with_state(port, change)


@FAULTS.add(
    area="embedding",
    ports=GEMMA,
    harmless="each element is multiplied by the same number and rounded once",
)
def embedding_scale_in_the_table(port: Port) -> Port:
    """Gemma's table is scaled once instead of its rows each time."""
    scale = port.hf_configs["tiny"]["hidden_size"] ** 0.5

    def change(state: State) -> None:
        state["tok_embedding.weight"] = state["tok_embedding.weight"] * scale

    def without(config: cfg.ModelConfig) -> None:
        config.embedding_scale = None

    return with_state(with_model_config(port, without), change)


@FAULTS.add(
    area="attention",
    ports="phi2",
    where="blocks.*.attn.k kv.*.k",
    harmless="q · b is the same for every key, and softmax does not see it" + CACHE_DIFFERS,
)
def bias_of_unrotated_keys_left_out(port: Port) -> Port:
    """Phi-2's bias of k is zero where RoPE does not rotate."""
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


@FAULTS.add(area="attention", via=with_softmax, harmless=ROUNDING)
def softmax_by_powers_of_two(scores: torch.Tensor, dim: int) -> torch.Tensor:
    """exp(x) is computed as 2 ** (x · log2 e), as fast kernels do."""
    powers = torch.exp2((scores - scores.amax(dim, keepdim=True)) * 1.4426950408889634)
    return powers / powers.sum(dim, keepdim=True)


@FAULTS.add(area="attention", via=with_kernel, harmless=SAME_ROUNDING)
def kv_heads_repeated_before_the_kernel(
    kernel: Function, q: Any, k: Any, v: Any, *args: Any, **given: Any
) -> Any:
    """KV heads are repeated before the kernel instead of inside."""
    times = q.shape[2] // k.shape[2]
    k, v = k.repeat_interleave(times, 2), v.repeat_interleave(times, 2)
    return kernel(q, k, v, *args, **given)


@FAULTS.add(area="mask", via=with_mask, harmless="exp(-1e9) is 0 in float32")
def mask_of_large_numbers(mask: torch.Tensor) -> torch.Tensor:
    """Hidden scores are lowered by 1e9 instead of to minus infinity."""
    return mask.clamp(min=-1e9)


@FAULTS.add(area="cache", via=with_update, harmless="the same rows get the same values")
def cache_written_by_index(update: Function, cache: Any, pos: Any, k: Any, v: Any) -> Any:
    """Rows are copied by their index instead of by a slice update."""
    update(cache, pos, k, v)
    rows = pos.long()
    return kv_utils.KVCacheEntry(
        cache.k_cache.index_copy(1, rows, k),
        cache.v_cache.index_copy(1, rows, v),
        cache.kv_layout,
    )
