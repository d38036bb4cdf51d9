"""Reads the re-authored side: its ``ModelConfig``, and the module that was built from it.

The two are read separately, because a class may ignore its config. The module's widths come from
its parameters, its epsilons from its norms, its windows from the masks that it stores.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from litert_torch.generative.layers import attention as stock_attention
from litert_torch.generative.layers import model_config as cfg
from litert_torch.generative.layers import rotary_position_embedding
from torch import nn

from edgeverify.audits import probe
from edgeverify.audits.masks import window_of
from edgeverify.audits.model import Readings
from edgeverify.audits.of_hf_config import NONE, read_norm
from edgeverify.audits.probe import first

_ACTIVATIONS = {
    cfg.ActivationType.LINEAR: "none",
    cfg.ActivationType.SILU: "silu",
    cfg.ActivationType.GELU: "gelu",
    cfg.ActivationType.GELU_TANH: "gelu (tanh form)",
    cfg.ActivationType.GELU_QUICK: "gelu (quick form)",
    cfg.ActivationType.GE_GLU: "gelu",
    cfg.ActivationType.RELU: "relu",
    cfg.ActivationType.SILU_GLU: "silu",
}
_GATES = (cfg.ActivationType.GE_GLU, cfg.ActivationType.SILU_GLU)
_NORMS = {
    cfg.NormalizationType.RMS_NORM: "RMSNorm",
    cfg.NormalizationType.LAYER_NORM: "LayerNorm",
    cfg.NormalizationType.GROUP_NORM: "GroupNorm",
}
# The Generative API's attention config has no score scale; a port's own config may have one.
_SCALES = ("score_scale", "query_scale", "attention_scale", "scale")


def of_config(config: cfg.ModelConfig) -> Readings:
    """Reads a ``ModelConfig``, block by block."""
    out = Readings("ModelConfig")
    first_attention = config.block_config(0).attn_config
    share = first_attention.rotary_percentage
    out.values |= {
        "vocabulary": config.vocab_size,
        "width": config.embedding_dim,
        "layers": config.num_layers,
        "max length": config.max_seq_len,
        "embedding scale": _factor(config.embedding_scale),
        "tied head": _yes(config.lm_head_share_weight_with_embedding),
        "head bias": _yes(config.lm_head_use_bias),
        "final softcap": config.final_logit_softcap or NONE,
        "rotary base": float(first_attention.rotary_base),
    }
    if share is None:
        out.unread["rotary elements"] = "rotary_percentage is None"
    else:  # as DecoderOnlyModel.forward truncates it
        out.values["rotary elements"] = int(share * first_attention.head_dim)
    if config.build_rope is rotary_position_embedding.build_rope:
        out.values["rotary scaling"] = "default"
    else:
        out.unread["rotary scaling"] = "build_rope is the port's own"
    _norm_config(out, "final norm", config.final_norm_config)
    for i in range(config.num_layers):
        _block_config(out, f"blocks.{i}.", config.block_config(i))
    return out


def _block_config(out: Readings, at: str, block: cfg.TransformerBlockConfig) -> None:
    attention, feed_forward = block.attn_config, block.ff_config
    gated = feed_forward.type == cfg.FeedForwardType.GATED
    kind = feed_forward.activation.type
    sliding = attention.attn_type == cfg.AttentionType.LOCAL_SLIDING
    out.values |= {
        f"{at}heads": attention.num_heads,
        f"{at}key/value heads": attention.num_query_groups or attention.num_heads,
        f"{at}head_dim": attention.head_dim,
        f"{at}feed-forward width": feed_forward.intermediate_size,
        f"{at}activation": _ACTIVATIONS.get(kind, kind.name),
        f"{at}gated": _yes(gated or kind in _GATES),
        f"{at}qkv bias": _yes(attention.qkv_use_bias),
        f"{at}attention output bias": _yes(attention.output_proj_use_bias),
        f"{at}feed-forward bias": _yes(feed_forward.use_bias),
        f"{at}attention softcap": attention.logit_softcap or NONE,
        f"{at}window": (attention.sliding_window_size or NONE) if sliding else NONE,
        f"{at}parallel residual": _yes(block.parallel_residual),
    }
    scale = first(attention, *_SCALES)
    if scale is not None:
        out.values[f"{at}query scale"] = float(scale)
    # If the feed-forward has its own pre-norm, the norm before that belongs to the attention.
    own = feed_forward.pre_ff_norm_config
    separate = own is not None and own.type != cfg.NormalizationType.NONE
    after = block.post_attention_norm_config
    for role, norm in {
        "attention norm": block.pre_attention_norm_config,
        "attention output norm": after if separate else None,
        # In parallel with the attention, the feed-forward takes the attention's normed input.
        "feed-forward norm": own if separate else None if block.parallel_residual else after,
        "feed-forward output norm": feed_forward.post_ff_norm_config,
        "query norm": attention.query_norm_config,
        "key norm": attention.key_norm_config,
    }.items():
        _norm_config(out, at + role, norm)


def _norm_config(out: Readings, field: str, norm: cfg.NormalizationConfig | None) -> None:
    kind = NONE if norm is None else _NORMS.get(norm.type, NONE)
    out.values[field] = kind
    if norm is not None and kind != NONE:
        out.values[f"{field} eps"] = float(norm.epsilon)
        out.values[f"{field} factor"] = "1 + weight" if norm.zero_centered else "weight"


def of_module(model: Any) -> Readings:
    """Reads the built module: shapes, norms, activations, masks.

    Args:
        model: the re-authored model; its blocks are in ``transformer_blocks``.
    """
    out = Readings("module")
    config: cfg.ModelConfig = model.config
    table, head = first(model, "tok_embedding"), first(model, "lm_head")
    out.values["layers"] = len(model.transformer_blocks)
    if isinstance(getattr(table, "weight", None), torch.Tensor) and table.weight.dim() == 2:
        out.values["vocabulary"], out.values["width"] = table.weight.shape
    else:
        out.unread |= dict.fromkeys(("vocabulary", "width"), "the model has no tok_embedding")
    if isinstance(head, nn.Module) and "width" in out.values:
        out.values["head bias"] = probe.has_bias(head)
        out.values["tied head"] = _yes(_same(head.weight, table.weight))
    else:
        out.unread |= dict.fromkeys(("head bias", "tied head"), "the model has no lm_head")
    read_norm(out, "final norm", first(model, "final_norm"))
    masks = first(model, "mask_cache")
    for i, block in enumerate(model.transformer_blocks):
        at = f"blocks.{i}."
        attention = ("heads", "key/value heads", "head_dim")
        _attempt(out, at, attention, partial(_attention_module, out, at, block))
        inner = ("feed-forward width", "activation", "gated")
        _attempt(out, at, inner, partial(_ff_module, out, at, block))
        _attempt(out, at, ("attention norm",), partial(_block_norms, out, at, block))
        if masks is not None:
            _attempt(out, at, ("window",), partial(_window, out, at, masks, config.block_config(i)))
    return out


def _attempt(out: Readings, at: str, fields: Sequence[str], read: Callable[[], None]) -> None:
    """Runs ``read``; a class of the user's own may lack any of the Generative API's names."""
    try:
        read()
    except Exception as error:
        reason = f"not read: {type(error).__name__}: {error}"
        out.unread |= {at + name: reason for name in fields if at + name not in out.values}


def _attention_module(out: Readings, at: str, block: Any) -> None:
    attention = block.atten_func
    config, qkv, output = attention.config, attention.qkv_projection, attention.output_projection
    dim = config.head_dim
    heads = output.in_features // dim
    out.values |= {
        f"{at}heads": heads,
        f"{at}key/value heads": (qkv.out_features // dim - heads) // 2,
        f"{at}head_dim": dim,
        f"{at}qkv bias": probe.has_bias(qkv),
        f"{at}attention output bias": probe.has_bias(output),
        f"{at}attention softcap": config.logit_softcap or NONE,
    }
    scale = first(config, *_SCALES)
    stock = inspect.unwrap(type(attention).forward) is stock_attention.CausalSelfAttention.forward
    if scale is not None:
        out.values[f"{at}query scale"] = float(scale)
    elif stock:  # scaled_dot_product_attention's own: 1 / sqrt(head_dim)
        out.values[f"{at}query scale"] = 1.0 / dim**0.5
    else:
        out.unread[f"{at}query scale"] = f"no {' or '.join(_SCALES)} in the attention's config"


def _ff_module(out: Readings, at: str, block: Any) -> None:
    feed_forward = block.ff
    name, halves = probe.activation(feed_forward.act)
    up = [part for part in (first(feed_forward, "w1"), first(feed_forward, "w3")) if part]
    out.values |= {
        f"{at}activation": name,
        f"{at}feed-forward width": feed_forward.w2.in_features,
        f"{at}gated": _yes(halves or len(up) == 2),
        f"{at}feed-forward bias": probe.has_bias(feed_forward.w2, *up),
    }


def _block_norms(out: Readings, at: str, block: Any) -> None:
    feed_forward, attention = block.ff, block.atten_func
    own = first(feed_forward, "pre_ff_norm")
    separate = isinstance(own, nn.Module)
    after = block.post_atten_norm
    parallel = bool(getattr(first(block, "config"), "parallel_residual", False))
    for role, norm in {
        "attention norm": block.pre_atten_norm,
        "attention output norm": after if separate else None,
        "feed-forward norm": own if separate else None if parallel else after,
        "feed-forward output norm": first(feed_forward, "post_ff_norm"),
        "query norm": first(attention, "query_norm"),
        "key norm": first(attention, "key_norm"),
    }.items():
        read_norm(out, at + role, norm)


def _window(out: Readings, at: str, masks: Any, block: cfg.TransformerBlockConfig) -> None:
    if isinstance(masks, Mapping):
        kind = block.attn_config.attn_type
        masks = masks["local" if kind == cfg.AttentionType.LOCAL_SLIDING else "global"]
    out.values[f"{at}window"] = window_of(masks.detach().numpy()[0, 0])


def _same(left: Any, right: Any) -> bool:
    return bool(left.shape == right.shape and left.data_ptr() == right.data_ptr())


def _factor(value: Any) -> Any:
    return NONE if value is None or float(value) == 1.0 else float(value)


def _yes(value: Any) -> str:
    return "yes" if value else "no"
