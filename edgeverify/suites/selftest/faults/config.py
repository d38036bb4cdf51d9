"""Faults of reading the config: shapes, counts, switches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from edgeverify.suites.selftest.faults.changes import with_config, with_model
from edgeverify.suites.selftest.faults.fault import REFUSED, Fault
from edgeverify.suites.selftest.faults.ports import ALL, GATED, LLAMA, UNIFORM
from edgeverify_models.port import Port


def _head_dim_of_hidden(port: Port) -> Port:
    hf = port.hf_configs["tiny"]
    return with_config(port, head_dim=hf["hidden_size"] // hf["num_attention_heads"])


def _as_many_kv_heads(port: Port) -> Port:
    return with_config(port, num_key_value_heads=port.hf_configs["tiny"]["num_attention_heads"])


def _one_kv_head(port: Port) -> Port:
    return with_config(port, num_key_value_heads=1)


def _half_the_heads_twice_as_wide(port: Port) -> Port:
    """Every matrix keeps its shape: heads, groups and head_dim are wrong together."""
    hf = port.hf_configs["tiny"]
    dim = hf.get("head_dim", hf["hidden_size"] // hf["num_attention_heads"])
    return with_config(
        port,
        num_attention_heads=hf["num_attention_heads"] // 2,
        num_key_value_heads=hf["num_key_value_heads"] // 2,
        head_dim=dim * 2,
    )


def _width_without_its_rule(port: Port) -> Port:
    """Rounding to the nearest multiple, without "never 10 % below"."""
    hf = port.hf_configs["tiny"]
    multipliers = list(hf["ffn_multipliers"])
    multipliers[0] = hf["ffn_dim_divisor"] / hf["model_dim"]
    return with_config(port, ffn_multipliers=multipliers)


def _one_width_for_all(port: Port) -> Port:
    return with_config(port, ffn_multipliers=port.hf_configs["tiny"]["ffn_multipliers"][-1])


def _heads_of_the_last_layer(port: Port) -> Port:
    hf = port.hf_configs["tiny"]
    layers = hf["num_transformer_layers"]
    return with_config(
        port,
        num_query_heads=[hf["num_query_heads"][-1]] * layers,
        num_kv_heads=[hf["num_kv_heads"][-1]] * layers,
        qkv_multipliers=None,
    )


class _ButTheLast(nn.ModuleList):
    """Its last module is there and is passed over: the stream and the cache go past it."""

    def __iter__(self) -> Iterator[Any]:
        *first, _ = super().__iter__()
        yield from first
        yield _pass_by


def _pass_by(x: torch.Tensor, rope: Any, mask: Any, pos: Any, cache: Any, *rest: Any) -> Any:
    return x, cache


def _last_layer_skipped(port: Port) -> Port:
    def change(model: Any) -> None:
        forward, blocks = model.forward, model.transformer_blocks

        def skipping(**kwargs: Any) -> Any:
            blocks.__class__ = _ButTheLast
            try:
                return forward(**kwargs)
            finally:
                blocks.__class__ = nn.ModuleList

        model.forward = skipping

    return with_model(port, change)


FAULTS = (
    Fault(
        name="head_dim_of_hidden_over_heads",
        area="config",
        description="head_dim is overlooked; hidden_size / heads is used.",
        cause="head_dim of hidden_size / heads",
        ports=GATED,
        where=(REFUSED,),
        told="qkv_projection",
        port=_head_dim_of_hidden,
    ),
    Fault(
        name="kv_heads_overlooked",
        area="config",
        description="num_key_value_heads is overlooked: as many as query heads.",
        cause="KV heads = query heads",
        ports=UNIFORM,
        where=(REFUSED,),
        told="qkv_projection",
        port=_as_many_kv_heads,
    ),
    Fault(
        name="one_kv_head",
        area="config",
        description="Multi-query attention is assumed: one KV head.",
        cause="KV heads = 1",
        ports=UNIFORM,
        where=(REFUSED,),
        told="qkv_projection",
        port=_one_kv_head,
    ),
    Fault(
        name="half_the_heads_twice_as_wide",
        area="config",
        description="Half as many heads, each twice as wide: every matrix keeps its shape.",
        cause="heads and head_dim",
        ports=("tinyllama", "gemma1", "gemma2", "smollm2"),
        where=("blocks.*.attn.q",),
        port=_half_the_heads_twice_as_wide,
    ),
    Fault(
        name="vocabulary_rounded_up",
        area="config",
        description="The vocabulary is rounded up to a multiple of 64.",
        cause="vocabulary size rounded up",
        ports=ALL,
        where=(REFUSED,),
        told="tok_embedding",
        port=lambda port: with_config(
            port, vocab_size=-(-port.hf_configs["tiny"]["vocab_size"] // 64) * 64
        ),
    ),
    Fault(
        name="feed_forward_width_of_four_times_hidden",
        area="config",
        description="intermediate_size is overlooked: 4 · hidden_size.",
        cause="feed-forward width 4 · hidden",
        ports=UNIFORM,
        where=(REFUSED,),
        told="ff.w",
        port=lambda port: with_config(
            port, intermediate_size=4 * port.hf_configs["tiny"]["hidden_size"]
        ),
    ),
    Fault(
        name="width_rounded_without_its_rule",
        area="config",
        description="OpenELM's widths are rounded to the nearest multiple, even 10 % down.",
        cause="rounding rule of the feed-forward width",
        ports=("openelm",),
        where=(REFUSED,),
        told="ff.w",
        port=_width_without_its_rule,
        source="mlxcel #1034",
    ),
    Fault(
        name="one_width_for_all_layers",
        area="config",
        description="All of OpenELM's layers have the last one's feed-forward width.",
        cause="one width for all layers",
        ports=("openelm",),
        where=(REFUSED,),
        told="ff.w",
        port=_one_width_for_all,
        source="litert-torch db7add2",
    ),
    Fault(
        name="heads_of_the_last_layer_for_all",
        area="config",
        description="All of OpenELM's layers have the last one's heads.",
        cause="one number of heads for all layers",
        ports=("openelm",),
        where=(REFUSED,),
        told="qkv_projection",
        port=_heads_of_the_last_layer,
        source="litert-torch db7add2",
    ),
    Fault(
        name="attention_bias_invented",
        area="config",
        description="The port has biases that the checkpoint lacks.",
        cause="qkv bias added",
        ports=(*LLAMA, "gemma1", "gemma2"),
        where=(REFUSED,),
        told="bias",
        port=lambda port: with_config(port, attention_bias=True),
    ),
    Fault(
        name="one_layer_too_many",
        area="config",
        description="The port has one layer more than the checkpoint.",
        cause="number of layers + 1",
        ports=UNIFORM,
        where=(REFUSED,),
        told="is not in the checkpoint",
        port=lambda port: with_config(
            port, num_hidden_layers=port.hf_configs["tiny"]["num_hidden_layers"] + 1
        ),
    ),
    Fault(
        name="last_layer_not_run",
        area="config",
        description="The last layer is loaded, and the loop over the layers ends one early.",
        cause="last layer not run",
        ports=("tinyllama", "gemma1", "smollm", "phi2"),
        where=("blocks.2.attn_norm",),
        port=_last_layer_skipped,
    ),
)
