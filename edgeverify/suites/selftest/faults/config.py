"""Faults of reading the config: shapes, counts, switches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from edgeverify.suites.selftest.faults.fault import Faults
from edgeverify.suites.selftest.faults.port_changes import with_config, with_model
from edgeverify.suites.selftest.faults.ports import GATED, UNIFORM
from edgeverify_models.port import Port

FAULTS = Faults("config")
LAYERS_SOURCE = "litert-torch db7add2"


@FAULTS.add("head_dim of hidden_size / heads", ports=GATED, refusal="qkv_projection")
def head_dim_of_hidden_over_heads(port: Port) -> Port:
    """head_dim is overlooked; hidden_size / heads is used."""
    hf = port.hf_configs["tiny"]
    return with_config(port, head_dim=hf["hidden_size"] // hf["num_attention_heads"])


@FAULTS.add("KV heads = query heads", ports=UNIFORM, refusal="qkv_projection")
def kv_heads_overlooked(port: Port) -> Port:
    """num_key_value_heads is overlooked: as many as query heads."""
    return with_config(port, num_key_value_heads=port.hf_configs["tiny"]["num_attention_heads"])


@FAULTS.add("KV heads = 1", ports=UNIFORM, refusal="qkv_projection")
def one_kv_head(port: Port) -> Port:
    """Multi-query attention is assumed: one KV head."""
    return with_config(port, num_key_value_heads=1)


@FAULTS.add("heads and head_dim", ports="tinyllama gemma1 gemma2 smollm2", where="blocks.*.attn.q")
def half_the_heads_twice_as_wide(port: Port) -> Port:
    """Half as many heads, each twice as wide: every matrix keeps its shape."""
    hf = port.hf_configs["tiny"]
    dim = hf.get("head_dim", hf["hidden_size"] // hf["num_attention_heads"])
    return with_config(
        port,
        num_attention_heads=hf["num_attention_heads"] // 2,
        num_key_value_heads=hf["num_key_value_heads"] // 2,
        head_dim=dim * 2,
    )


@FAULTS.add("vocabulary size rounded up", refusal="tok_embedding")
def vocabulary_rounded_up(port: Port) -> Port:
    """The vocabulary is rounded up to a multiple of 64."""
    return with_config(port, vocab_size=-(-port.hf_configs["tiny"]["vocab_size"] // 64) * 64)


@FAULTS.add("feed-forward width 4 · hidden", ports=UNIFORM, refusal="ff.w")
def feed_forward_width_of_four_times_hidden(port: Port) -> Port:
    """intermediate_size is overlooked: 4 · hidden_size."""
    return with_config(port, intermediate_size=4 * port.hf_configs["tiny"]["hidden_size"])


@FAULTS.add(
    "rounding rule of the feed-forward width",
    ports="openelm",
    refusal="ff.w",
    source="mlxcel #1034",
)
def width_rounded_without_its_rule(port: Port) -> Port:
    """OpenELM's widths are rounded to the nearest multiple, even 10 % down."""
    hf = port.hf_configs["tiny"]
    first = hf["ffn_dim_divisor"] / hf["model_dim"]
    return with_config(port, ffn_multipliers=[first, *hf["ffn_multipliers"][1:]])


@FAULTS.add("one width for all layers", ports="openelm", refusal="ff.w", source=LAYERS_SOURCE)
def one_width_for_all_layers(port: Port) -> Port:
    """All of OpenELM's layers have the last one's feed-forward width."""
    return with_config(port, ffn_multipliers=port.hf_configs["tiny"]["ffn_multipliers"][-1])


@FAULTS.add(
    "one number of heads for all layers",
    ports="openelm",
    refusal="qkv_projection",
    source=LAYERS_SOURCE,
)
def heads_of_the_last_layer_for_all(port: Port) -> Port:
    """All of OpenELM's layers have the last one's heads."""
    hf = port.hf_configs["tiny"]
    layers = hf["num_transformer_layers"]
    return with_config(
        port,
        num_query_heads=[hf["num_query_heads"][-1]] * layers,
        num_kv_heads=[hf["num_kv_heads"][-1]] * layers,
        qkv_multipliers=None,
    )


@FAULTS.add("qkv bias added", ports=GATED, refusal="bias")
def attention_bias_invented(port: Port) -> Port:
    """The port has biases that the checkpoint lacks."""
    return with_config(port, attention_bias=True)


@FAULTS.add("number of layers + 1", ports=UNIFORM, refusal="is not in the checkpoint")
def one_layer_too_many(port: Port) -> Port:
    """The port has one layer more than the checkpoint."""
    layers = port.hf_configs["tiny"]["num_hidden_layers"]
    return with_config(port, num_hidden_layers=layers + 1)


class _ButTheLast(nn.ModuleList):
    """Its last module is there and is passed over: the stream and the cache go past it."""

    def __iter__(self) -> Iterator[Any]:
        *first, _ = super().__iter__()
        yield from first
        yield _pass_by


def _pass_by(x: torch.Tensor, rope: Any, mask: Any, pos: Any, cache: Any, *rest: Any) -> Any:
    return x, cache


@FAULTS.add(
    "last layer not run",
    via=with_model,
    ports="tinyllama gemma1 smollm phi2",
    where="blocks.2.attn_norm",
)
def last_layer_not_run(model: Any) -> None:
    """The last layer is loaded, and the loop over the layers ends one early."""
    forward, blocks = model.forward, model.transformer_blocks

    def skipping(**kwargs: Any) -> Any:
        blocks.__class__ = _ButTheLast
        try:
            return forward(**kwargs)
        finally:
            blocks.__class__ = nn.ModuleList

    model.forward = skipping
