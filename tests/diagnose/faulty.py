"""Ports that are wrong in one known way, each with the kinds of cause that name it rightly.

Half of the faults are in the code or in the tensors of a port whose config is right.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any
from unittest import mock

import torch
from litert_torch.generative.layers import kv_cache as kv_utils
from litert_torch.generative.layers import model_config as cfg
from litert_torch.generative.layers import rotary_position_embedding as rotary
from litert_torch.generative.layers import scaled_dot_product_attention as sdpa
from torch import nn

import edgeverify_models as models
from edgeverify.core.results import Report
from edgeverify_models.port import Port
from tests.variants import with_config, with_model

Change = Callable[[Any], None]
# A token id of the default prompt of smollm2's tiny size that occurs in it more than once.
SHOWN_TOKEN = 65
SDPA = ("scaled_dot_product_attention", "scaled_dot_product_attention_with_hlfb")


def altered(name: str, change: Change) -> Port:
    """A port whose re-authored config is changed."""
    port = models.load(name)

    def config(hf: Mapping[str, Any]) -> cfg.ModelConfig:
        right = port.model_config(hf)
        change(right)
        return right

    return replace(port, model_config=config)


def each_block(name: str, change: Change) -> Port:
    """A port whose block configs are changed."""

    def all_blocks(config: cfg.ModelConfig) -> None:
        blocks = config.block_configs
        for block in blocks if isinstance(blocks, (list, tuple)) else [blocks]:
            change(block)

    return altered(name, all_blocks)


def built(name: str, change: Change) -> Port:
    """A port whose blocks are changed once they are built."""

    def change_blocks(model: nn.Module) -> None:
        for block in model.transformer_blocks:
            change(block)

    return with_model(models.load(name), change_blocks)


def with_state(name: str, change: Callable[[dict[str, torch.Tensor]], None]) -> Port:
    """A port into which changed tensors are loaded, by the re-authored model's names."""
    port = models.load(name)

    class Changed(port.model_class):  # type: ignore[misc, name-defined]
        def load_state_dict(self, state: Any, *args: Any, **kwargs: Any) -> Any:
            state = dict(state)
            change(state)
            return super().load_state_dict(state, *args, **kwargs)

    return replace(port, model_class=Changed)


def tensor(name: str, path: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Port:
    """A port one of whose tensors is changed; ``*`` in its path stands for every block."""

    def apply(state: dict[str, torch.Tensor]) -> None:
        before, _, after = path.partition("*")
        for key in [k for k in state if k == path or _matches(k, before, after, "*" in path)]:
            state[key] = change(state[key])

    return with_state(name, apply)


def _matches(key: str, before: str, after: str, star: bool) -> bool:
    return star and key.startswith(before) and key.endswith(after)


def rope(name: str, build: Callable[..., Any]) -> Port:
    """A port with its own ``build_rope(input_pos, n_elem, base)``."""
    return altered(name, lambda config: setattr(config, "build_rope", build))


def attending(name: str, change: Callable[..., tuple[Any, ...]]) -> Port:
    """A port whose attention kernels get what ``change(q, k, v, kwargs)`` returns."""

    def patch(block: nn.Module) -> None:
        attention = block.atten_func
        forward = attention.forward

        def patched(*args: Any, **kwargs: Any) -> Any:
            with mock.patch.multiple(sdpa, **{n: _changed(getattr(sdpa, n), change) for n in SDPA}):
                return forward(*args, **kwargs)

        attention.forward = patched

    return built(name, patch)


def _changed(call: Callable[..., Any], change: Callable[..., Any]) -> Callable[..., Any]:
    def attend(q: Any, k: Any, v: Any, dim: int, **kwargs: Any) -> Any:
        q, k, v, kwargs = change(q, k, v, kwargs)
        return call(q, k, v, dim, **kwargs)

    return attend


def masked(name: str, change: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Port:
    """A port whose blocks get ``change(mask, input_pos)`` for their mask."""

    def patch(block: nn.Module) -> None:
        forward = block.forward

        def patched(x: Any, rope: Any, mask: Any, input_pos: Any, *rest: Any) -> Any:
            return forward(x, rope, change(mask, input_pos), input_pos, *rest)

        block.forward = patched

    return built(name, patch)


def _tiled(q: Any, k: Any, v: Any, kwargs: Any) -> Any:
    each = q.shape[2] // k.shape[2]
    return q, k.repeat(1, 1, each, 1), v.repeat(1, 1, each, 1), kwargs


def _scaled(scale: float) -> Callable[..., Any]:
    return lambda q, k, v, kwargs: (q, k, v, {**kwargs, "scale": scale})


def _half_rope(dtype: torch.dtype) -> Callable[..., Any]:
    def build(input_pos: Any, n_elem: int, base: int) -> Any:
        return tuple(t.to(dtype).float() for t in rotary.build_rope(input_pos, n_elem, base))

    return build


def _shifted_rope(when: Callable[[torch.Tensor], bool], by: int) -> Callable[..., Any]:
    def build(input_pos: torch.Tensor, n_elem: int, base: int) -> Any:
        return rotary.build_rope(input_pos + (by if when(input_pos) else 0), n_elem, base)

    return build


def _interleaved(block: nn.Module) -> None:
    forward = block.atten_func.forward

    def turn(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        cos, sin = cos[:, :, None], sin[:, :, None]
        size = 2 * cos.shape[-1]
        a, b, rest = x[..., 0:size:2], x[..., 1:size:2], x[..., size:]
        turned = torch.stack((a * cos - b * sin, b * cos + a * sin), -1).flatten(-2)
        return torch.cat((turned, rest), -1)

    def inline(q: Any, k: Any, cos: Any, sin: Any) -> Any:
        return turn(q, cos, sin), turn(k, cos, sin)

    def patched(*args: Any, **kwargs: Any) -> Any:
        with mock.patch.object(rotary, "apply_rope_inline", inline):
            return forward(*args, **kwargs)

    block.atten_func.forward = patched


def _no_rope(q: Any, k: Any, cos: Any, sin: Any) -> Any:
    return q, k


def _rope_missing_in(block_number: int) -> Change:
    def change(model: nn.Module) -> None:
        attention = model.transformer_blocks[block_number].atten_func
        forward = attention.forward

        def patched(*args: Any, **kwargs: Any) -> Any:
            with mock.patch.object(rotary, "apply_rope_inline", _no_rope):
                return forward(*args, **kwargs)

        attention.forward = patched

    return change


def _norm_after_rope(block: nn.Module) -> None:
    attention = block.atten_func
    forward, norms = attention.forward, (attention.query_norm, attention.key_norm)
    apply = rotary.apply_rope_inline

    def inline(q: Any, k: Any, cos: Any, sin: Any) -> Any:
        q, k = apply(q, k, cos, sin)
        return norms[0](q), norms[1](k)

    def patched(*args: Any, **kwargs: Any) -> Any:
        same = lambda self, x: x  # noqa: E731
        kind = type(norms[0])
        bare = type("Bare", (kind,), {"__call__": same})
        for norm in norms:
            norm.__class__ = bare

        def late(q: Any, k: Any, cos: Any, sin: Any) -> Any:
            for norm in norms:
                norm.__class__ = kind
            return inline(q, k, cos, sin)

        with mock.patch.object(rotary, "apply_rope_inline", late):
            return forward(*args, **kwargs)

    attention.forward = patched


def _feed_forward(forward: Callable[..., torch.Tensor]) -> Change:
    """``forward(ff, x)`` takes the feed-forward's place."""

    def change(block: nn.Module) -> None:
        block.ff.forward = lambda x, ff=block.ff: forward(ff, x)

    return change


def _swapped_gate(ff: nn.Module, x: torch.Tensor) -> torch.Tensor:
    x = ff.pre_ff_norm(x)
    return ff.post_ff_norm(ff.w2(ff.act(ff.w3(x)) * ff.w1(x)))


def _alternating_gate(ff: nn.Module, x: torch.Tensor) -> torch.Tensor:
    hidden = ff.w1(ff.pre_ff_norm(x))
    return ff.w2(nn.functional.silu(hidden[..., 0::2]) * hidden[..., 1::2])


def _swapped_chunks(ff: nn.Module, x: torch.Tensor) -> torch.Tensor:
    first, second = ff.w1(ff.pre_ff_norm(x)).chunk(2, -1)
    return ff.w2(first * nn.functional.silu(second))


def _activation(function: Callable[[torch.Tensor], torch.Tensor]) -> Change:
    return lambda block: setattr(block.ff, "act", function)


def _block(forward: Callable[..., Any]) -> Change:
    """``forward(block, x, rope, mask, input_pos, kv_cache)`` takes the block's place."""

    def change(block: nn.Module) -> None:
        block.forward = lambda x, rope, mask, pos, cache, *_, block=block: forward(
            block, x, rope, mask, pos, cache
        )

    return change


def _from_norm(block: Any, x: Any, rope: Any, mask: Any, pos: Any, cache: Any) -> Any:
    x = block.pre_atten_norm(x)
    attended, cache = block.atten_func(x, rope, mask, pos, cache)
    x = x + attended
    return x + block.ff(block.post_atten_norm(x)), cache


def _no_second_residual(block: Any, x: Any, rope: Any, mask: Any, pos: Any, cache: Any) -> Any:
    attended, cache = block.atten_func(block.pre_atten_norm(x), rope, mask, pos, cache)
    return block.ff(block.post_atten_norm(x + attended)), cache


def _sequential(block: Any, x: Any, rope: Any, mask: Any, pos: Any, cache: Any) -> Any:
    attended, cache = block.atten_func(block.pre_atten_norm(x), rope, mask, pos, cache)
    x = x + attended
    return x + block.ff(block.pre_atten_norm(x)), cache


def _late_post_norms(block: Any, x: Any, rope: Any, mask: Any, pos: Any, cache: Any) -> Any:
    attended, cache = block.atten_func(block.pre_atten_norm(x), rope, mask, pos, cache)
    x = block.post_atten_norm(x + attended)
    return x + block.ff(x), cache


def _scaled_output(factor: float) -> Change:
    def change(block: nn.Module) -> None:
        part = block.atten_func.output_projection
        part.forward = lambda x, call=part.forward: call(x) * factor

    return change


def _norm(make: Callable[[nn.Module, torch.Tensor], torch.Tensor], *names: str) -> Change:
    def change(block: nn.Module) -> None:
        for name in names:
            norm = getattr(block, name)
            norm.forward = lambda x, norm=norm: make(norm, x)

    return change


def _eps_outside(norm: Any, x: torch.Tensor) -> torch.Tensor:
    return x / (x.pow(2).mean(-1, keepdim=True).sqrt() + norm.eps) * norm.weight


def _layer_norm(norm: Any, x: torch.Tensor) -> torch.Tensor:
    return nn.functional.layer_norm(x, x.shape[-1:], norm.weight, None, norm.eps)


def _rms_norm(norm: Any, x: torch.Tensor) -> torch.Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + norm.eps) * norm.weight + norm.bias


def _mean_norm(norm: Any, x: torch.Tensor) -> torch.Tensor:
    return x / (x.abs().mean(-1, keepdim=True) + norm.eps) * norm.weight


def _head(make: Callable[[torch.Tensor], torch.Tensor]) -> Change:
    def change(model: nn.Module) -> None:
        head = model.lm_head
        head.forward = lambda x, call=head.forward: make(call(x))

    return change


def _tied(model: nn.Module) -> None:
    model.lm_head.forward = lambda x: x @ model.tok_embedding.weight.T


def _embedding(make: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Change:
    def change(model: nn.Module) -> None:
        table = model.tok_embedding
        table.forward = lambda ids, call=table.forward: make(call(ids), ids)

    return change


def _swap_blocks(a: str, b: str) -> Callable[[dict[str, torch.Tensor]], None]:
    def change(state: dict[str, torch.Tensor]) -> None:
        state[a], state[b] = state[b], state[a]

    return change


def _permuted_k(weight: torch.Tensor) -> torch.Tensor:
    """k's rows of (4 + 2 + 2 heads) * 40 permuted as Meta's are."""
    weight = weight.clone()
    k = weight[160:240].view(2, 2, 20, -1).transpose(1, 2).reshape(80, -1)
    weight[160:240] = k
    return weight


def _q_heads_reversed(weight: torch.Tensor, heads: int, dim: int) -> torch.Tensor:
    q = weight[: heads * dim].view(heads, dim, -1).flip(0).reshape(heads * dim, -1)
    return torch.cat((q, weight[heads * dim :]))


def _cache_half(block: nn.Module) -> None:
    forward = block.forward

    def patched(*args: Any, **kwargs: Any) -> Any:
        out, entry = forward(*args, **kwargs)
        k, v = (t.bfloat16().float() for t in (entry.k_cache, entry.v_cache))
        return out, kv_utils.KVCacheEntry(k, v, entry.kv_layout)

    block.forward = patched


def _decode(positions: torch.Tensor) -> bool:
    return len(positions) == 1


def _sees_next(mask: torch.Tensor, input_pos: torch.Tensor) -> torch.Tensor:
    if not _decode(input_pos):
        return mask
    mask = mask.clone()
    mask[..., int(input_pos[0])] = float("-inf")
    return mask


def _within_chunk(mask: torch.Tensor, input_pos: torch.Tensor) -> torch.Tensor:
    mask = mask.clone()
    mask[..., : int(input_pos[-1]) + 1] = 0
    return mask


def _set(path: str, value: Any) -> Change:
    """``_set("attn_config.rotary_base", 1e4)`` sets a config's field."""

    def change(config: Any) -> None:
        *owners, name = path.split(".")
        for owner in owners:
            config = getattr(config, owner)
        setattr(config, name, value)

    return change


def _exchanged_kinds(config: cfg.ModelConfig) -> None:
    for block in config.block_configs:
        attention = block.attn_config
        local = attention.attn_type == cfg.AttentionType.LOCAL_SLIDING
        kind = cfg.AttentionType.GLOBAL if local else cfg.AttentionType.LOCAL_SLIDING
        attention.attn_type = kind
        attention.sliding_window_size = None if local else 13


def _global(block: cfg.TransformerBlockConfig) -> None:
    block.attn_config.attn_type = cfg.AttentionType.GLOBAL


def _window(size: int) -> Change:
    def change(block: cfg.TransformerBlockConfig) -> None:
        if block.attn_config.attn_type == cfg.AttentionType.LOCAL_SLIDING:
            block.attn_config.sliding_window_size = size

    return change


def _whole_head_frequencies(input_pos: torch.Tensor, n_elem: int, base: int) -> Any:
    exponents = torch.arange(0, n_elem, 2) / 24
    angles = input_pos[None, :, None] / float(base) ** exponents
    return angles.cos(), angles.sin()


def _mixed_frequencies(input_pos: torch.Tensor, n_elem: int, base: int) -> Any:
    """As no known scheme has them."""
    pairs = torch.arange(n_elem // 2)
    exponents = (pairs + 0.3 * torch.sin(pairs.float())) * 2 / n_elem
    angles = input_pos[None, :, None] / float(base) ** exponents
    return angles.cos(), angles.sin()


def _sigmoid_attention(q: Any, k: Any, v: Any, kwargs: Any) -> Any:
    """Scores pass through a sine before the kernel: q is changed after it has been read."""
    return q, torch.sin(k), v, kwargs


OUT = "transformer_blocks.{}.atten_func.output_projection.weight"
# name → what makes the port, the kinds of cause that name the fault rightly (none: no known one)
FAULTS: dict[str, tuple[Callable[[], Port], set[str]]] = {
    "gemma1_scale_left_out": (
        lambda: altered("gemma1", _set("embedding_scale", None)),
        {"embedding.scale"},
    ),
    "gemma1_scale_twice": (
        lambda: altered("gemma1", _set("embedding_scale", 96.0)),
        {"embedding.scale"},
    ),
    "gemma1_scale_odd": (
        lambda: altered("gemma1", _set("embedding_scale", 9.81)),
        {"embedding.scale"},
    ),
    "gemma1_norm_without_one": (
        lambda: altered("gemma1", lambda c: _zero_centered(c, value=False)),
        {"norm.offset"},
    ),
    "gemma1_exact_gelu": (
        lambda: each_block(
            "gemma1",
            _set("ff_config.activation", cfg.ActivationConfig(cfg.ActivationType.GELU)),
        ),
        {"ff.activation"},
    ),
    "gemma1_groups_tiled": (lambda: attending("gemma1", _tiled), {"attention.groups"}),
    "gemma1_scale_by_width": (
        lambda: attending("gemma1", _scaled(24**-0.5)),
        {"attention.scale"},
    ),
    "gemma1_scale_estimated": (
        lambda: attending("gemma1", _scaled(0.123)),
        {"attention.scale"},
    ),
    "gemma1_embedding_rounded": (
        lambda: with_model(models.load("gemma1"), _embedding(lambda x, ids: x.bfloat16().float())),
        {"embedding.half", "embedding.table"},
    ),
    "gemma2_no_score_cap": (
        lambda: each_block("gemma2", _set("attn_config.logit_softcap", None)),
        {"attention.softcap"},
    ),
    "gemma2_score_cap_50": (
        lambda: each_block("gemma2", _set("attn_config.logit_softcap", 50.0)),
        {"attention.softcap"},
    ),
    "gemma2_no_final_cap": (
        lambda: altered("gemma2", _set("final_logit_softcap", None)),
        {"head.softcap"},
    ),
    "gemma2_window_one_more": (lambda: each_block("gemma2", _window(14)), {"attention.window"}),
    "gemma2_all_global": (lambda: each_block("gemma2", _global), {"attention.window"}),
    "gemma2_kinds_exchanged": (
        lambda: altered("gemma2", _exchanged_kinds),
        {"attention.window"},
    ),
    "gemma2_no_post_norm": (
        lambda: built("gemma2", _norm(lambda norm, x: x, "post_atten_norm")),
        {"norm.missing"},
    ),
    "gemma2_post_norm_over_sum": (
        lambda: built("gemma2", _block(_late_post_norms)),
        {"norm.place"},
    ),
    "gemma2_scale_by_head_dim": (
        lambda: each_block("gemma2", _set("attn_config.score_scale", None)),
        {"attention.scale"},
    ),
    "tinyllama_interleaved": (lambda: built("tinyllama", _interleaved), {"rope.pairs"}),
    "tinyllama_k_permuted": (
        lambda: tensor("tinyllama", "transformer_blocks.*.qkv_projection.weight", _permuted_k),
        {"qkv.order", "weight"},
    ),
    "tinyllama_base_in_code": (
        lambda: rope("tinyllama", lambda p, n, b: rotary.build_rope(p, n, 8888.0)),
        {"rope.base"},
    ),
    "tinyllama_gate_and_up": (
        lambda: built("tinyllama", _feed_forward(_swapped_gate)),
        {"ff.gate"},
    ),
    "tinyllama_decode_positions": (
        lambda: rope("tinyllama", _shifted_rope(_decode, 1)),
        {"rope.positions"},
    ),
    "tinyllama_decode_mask": (lambda: masked("tinyllama", _sees_next), {"mask"}),
    "tinyllama_no_causal_mask": (lambda: masked("tinyllama", _within_chunk), {"mask"}),
    "tinyllama_down_of_another_block": (
        lambda: with_state(
            "tinyllama",
            _swap_blocks("transformer_blocks.1.ff.w2.weight", "transformer_blocks.2.ff.w2.weight"),
        ),
        {"weight"},
    ),
    "tinyllama_tied_head": (
        lambda: with_model(models.load("tinyllama"), _tied),
        {"head.weight"},
    ),
    "tinyllama_rope_in_bfloat16": (
        lambda: rope("tinyllama", _half_rope(torch.bfloat16)),
        {"rope.half"},
    ),
    "tinyllama_layer_norm": (
        lambda: built("tinyllama", _norm(_layer_norm, "pre_atten_norm")),
        {"norm.kind"},
    ),
    "tinyllama_final_norm_ones": (
        lambda: tensor("tinyllama", "final_norm.weight", torch.ones_like),
        {"norm.weight"},
    ),
    "phi2_whole_head_rotated": (
        lambda: each_block("phi2", _set("attn_config.rotary_percentage", 1.0)),
        {"rope.share"},
    ),
    "phi2_frequencies_of_the_whole_head": (
        lambda: rope("phi2", _whole_head_frequencies),
        {"rope.share"},
    ),
    "phi2_sequential": (lambda: built("phi2", _block(_sequential)), {"residual"}),
    "phi2_no_head_bias": (
        lambda: tensor("phi2", "lm_head.bias", torch.zeros_like),
        {"bias"},
    ),
    "phi2_no_qkv_bias": (
        lambda: tensor("phi2", "transformer_blocks.*.qkv_projection.bias", torch.zeros_like),
        {"bias"},
    ),
    "phi2_no_down_bias": (
        lambda: tensor("phi2", "transformer_blocks.*.w2.bias", torch.zeros_like),
        {"bias", "weight"},
    ),
    "phi2_output_transposed": (
        lambda: tensor(
            "phi2", "transformer_blocks.*.output_projection.weight", lambda w: w.T.contiguous()
        ),
        {"weight", "weight.transposed"},
    ),
    "phi2_exact_gelu": (
        lambda: built("phi2", _activation(nn.functional.gelu)),
        {"ff.activation"},
    ),
    "phi2_rms_norm": (lambda: built("phi2", _norm(_rms_norm, "pre_atten_norm")), {"norm.kind"}),
    "phi2_groups_tiled": (lambda: attending("phi2", _tiled), {"attention.groups"}),
    "openelm_norm_after_rope": (lambda: built("openelm", _norm_after_rope), {"norm.place"}),
    "openelm_chunks_swapped": (
        lambda: built("openelm", _feed_forward(_swapped_chunks)),
        {"ff.gate"},
    ),
    "openelm_chunks_alternating": (
        lambda: built("openelm", _feed_forward(_alternating_gate)),
        {"ff.gate"},
    ),
    "phi2_split_by_group": (
        lambda: each_block("phi2", _set("attn_config.qkv_transpose_before_split", False)),
        {"qkv.order"},
    ),
    "openelm_no_query_norm": (
        lambda: built("openelm", lambda b: _norm(lambda norm, x: x, "query_norm")(b.atten_func)),
        {"norm.missing"},
    ),
    "openelm_qk_norms_exchanged": (
        lambda: with_state("openelm", _exchange_qk_norms),
        {"norm.weight"},
    ),
    "smollm_base_a_million": (
        lambda: with_config(models.load("smollm"), rope_theta=1e6),
        {"rope.base"},
    ),
    "smollm_no_rope_in_block_1": (
        lambda: with_model(models.load("smollm"), _rope_missing_in(1)),
        {"rope.missing"},
    ),
    "smollm_eps_outside_the_root": (
        lambda: built("smollm", _norm(_eps_outside, "pre_atten_norm", "post_atten_norm")),
        {"norm.eps_outside"},
    ),
    "smollm_prefill_positions_restart": (
        lambda: rope(
            "smollm",
            lambda p, n, b: rotary.build_rope(p - (0 if len(p) == 1 else p[0]), n, b),
        ),
        {"rope.positions"},
    ),
    "smollm_rope_backwards": (
        lambda: rope("smollm", lambda p, n, b: _backwards(p, n, b)),
        {"rope.turn"},
    ),
    "smollm2_residual_from_norm": (lambda: built("smollm2", _block(_from_norm)), {"residual"}),
    "smollm2_no_second_residual": (
        lambda: built("smollm2", _block(_no_second_residual)),
        {"residual"},
    ),
    "smollm2_head_rounded": (
        lambda: with_model(models.load("smollm2"), _rounded_head),
        {"head.weight"},
    ),
    "smollm2_attention_scaled": (lambda: built("smollm2", _scaled_output(1.001)), {"factor"}),
    "smollm2_pad_token_zero": (
        lambda: with_model(
            models.load("smollm2"), _embedding(lambda x, ids: x * (ids != SHOWN_TOKEN)[..., None])
        ),
        {"embedding.table"},
    ),
    "smollm2_cache_in_bfloat16": (lambda: built("smollm2", _cache_half), {"cache.half"}),
    "smollm2_eps": (
        lambda: with_config(models.load("smollm2"), rms_norm_eps=1e-6),
        {"norm.eps"},
    ),
    "smollm2_logits_scaled": (
        lambda: with_model(models.load("smollm2"), _head(lambda y: y * 1.25)),
        {"head.factor", "factor"},
    ),
}


def _zero_centered(config: cfg.ModelConfig, *, value: bool) -> None:
    block = config.block_configs
    for norm in (
        config.final_norm_config,
        block.pre_attention_norm_config,
        block.post_attention_norm_config,
    ):
        norm.zero_centered = value


def _exchange_qk_norms(state: dict[str, torch.Tensor]) -> None:
    for key in [k for k in state if ".query_norm." in k]:
        other = key.replace(".query_norm.", ".key_norm.")
        state[key], state[other] = state[other], state[key]


def _backwards(input_pos: torch.Tensor, n_elem: int, base: int) -> Any:
    cos, sin = rotary.build_rope(input_pos, n_elem, base)
    return cos, -sin


def _rounded_head(model: nn.Module) -> None:
    model.lm_head.forward = lambda x: x @ model.lm_head.weight.bfloat16().float().T


# Faults that no repair in the list undoes: no cause may be claimed.
UNKNOWN: dict[str, Callable[[], Port]] = {
    "clipped_feed_forward": lambda: built(
        "tinyllama", _activation(lambda x: nn.functional.silu(x).clamp(-0.2, 0.2))
    ),
    "sine_for_an_activation": lambda: built("phi2", _activation(torch.sin)),
    "mixed_frequencies": lambda: rope("smollm", _mixed_frequencies),
    "sine_of_the_keys": lambda: attending("smollm2", _sigmoid_attention),
    "mean_for_root_mean_square": lambda: built("smollm", _norm(_mean_norm, "pre_atten_norm")),
    "squared_logits": lambda: with_model(
        models.load("openelm"), _head(lambda y: y + 0.01 * y * y.abs())
    ),
    "softmax_with_a_sink": lambda: attending(
        "gemma1",
        lambda q, k, v, kw: (q, k, v * (1 - 0.1 * math.cos(1.0) * k.sigmoid()), kw),
    ),
    "noisy_embedding": lambda: with_model(
        models.load("gemma2"), _embedding(lambda x, ids: x * (1 + 0.01 * torch.sin(1000 * x)))
    ),
}


def verdict(report: Report, kinds: Iterable[str]) -> str:
    """What the diagnosis is worth: ``right``, ``wrong``, ``partly`` or ``none``.

    It is wrong where any cause of another kind than ``kinds`` is claimed, and partly right where
    something is left unexplained.
    """
    causes = [finding for finding in report.findings if finding.id == "authoring.cause"]
    if not causes:
        return "none"
    if any(finding.cause not in set(kinds) for finding in causes):
        return "wrong"
    left = any(finding.id == "authoring.unexplained" for finding in report.findings)
    return "partly" if left else "right"
