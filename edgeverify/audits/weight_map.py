"""Maps each tensor of a checkpoint to its place in the re-authored model, by both sides' names.

Neither the ports' tensor names nor the loader's bookkeeping is used: this module knows HF's names
and the names of the Generative API's parameters. The order of q, k and v within the fused
projection is the one by which the attention's forward splits it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from edgeverify.litert.flatbuffer.weights import EMBEDDING, HEAD

_LAYER = re.compile(r"^(?:.*\.)?(?:layers|h|blocks)\.(\d+)\.(.+)\.(weight|bias)$")
_BLOCK = re.compile(r"(?:layers|h|blocks)\.(\d+)\.")
# HF's last names within a layer → part.
_PARTS = {
    "q_proj": "q",
    "k_proj": "k",
    "v_proj": "v",
    "qkv_proj": "qkv",
    "o_proj": "o",
    "dense": "o",
    "out_proj": "o",
    "gate_proj": "gate",
    "up_proj": "up",
    "fc1": "up",
    "gate_up_proj": "gate_up",
    "proj_1": "gate_up",
    "down_proj": "down",
    "fc2": "down",
    "proj_2": "down",
    "input_layernorm": "attn_norm",
    "attn_norm": "attn_norm",
    "post_attention_layernorm": "after_attention",
    "ffn_norm": "ff_norm",
    "pre_feedforward_layernorm": "ff_norm",
    "post_feedforward_layernorm": "ff_out_norm",
    "q_norm": "q_norm",
    "k_norm": "k_norm",
    "q_layernorm": "q_norm",
    "k_layernorm": "k_norm",
}
_EMBEDDING = ("embed_tokens.weight", "token_embeddings.weight", "wte.weight")
_FINAL_NORM = re.compile(r"^(?:model|transformer)\.(?:norm|final_layernorm|ln_f)\.(weight|bias)$")
_HEAD = re.compile(r"^lm_head\.(weight|bias)$")


@dataclass(frozen=True)
class Span:
    """Rows of a checkpoint's tensor that are placed in rows of a parameter.

    Attributes:
        tensor: HF's name.
        source: first row and end in the tensor; None for all of it.
        target: first row and end in the parameter; None for all of it.
    """

    tensor: str
    source: tuple[int, int] | None = None
    target: tuple[int, int] | None = None


Places = dict[str, tuple[Span, ...]]


def block_of(name: str) -> int | None:
    """Returns the block that a tensor or parameter belongs to, from the number in its name."""
    match = _BLOCK.search(name)
    return int(match.group(1)) if match else None


def places(
    shapes: Mapping[str, tuple[int, ...]], config: Any, apart: Collection[int] = ()
) -> Places:
    """Returns parameter of the Generative API → the spans that it consists of, in order.

    Args:
        shapes: shapes of the checkpoint's tensors, HF names. Unknown names are left out.
        config: the re-authored ``ModelConfig``: how q, k and v are split, whether gate and up are
            one matrix, whether the head is tied.
        apart: the blocks that store q, k and v as three matrices instead of one.
    """
    found: Places = {}
    layers: dict[int, dict[tuple[str, str], str]] = {}
    for name in shapes:
        if name.endswith(_EMBEDDING):
            found[EMBEDDING] = (Span(name),)
        elif (match := _FINAL_NORM.match(name)) is not None:
            found[f"final_norm.{match.group(1)}"] = (Span(name),)
        elif (match := _HEAD.match(name)) is not None:
            found[f"lm_head.{match.group(1)}"] = (Span(name),)
        elif (match := _LAYER.match(name)) is not None:
            part = _PARTS.get(match.group(2).rpartition(".")[2])
            if part is not None:
                layers.setdefault(int(match.group(1)), {})[part, match.group(3)] = name
    if config.lm_head_share_weight_with_embedding and EMBEDDING in found:
        found.setdefault(HEAD, found[EMBEDDING])
    for index, parts in layers.items():
        if index < config.num_layers:
            at, block = f"transformer_blocks.{index}.", config.block_config(index)
            found |= _block(at, parts, shapes, block, index in apart)
    return found


def _block(
    at: str,
    parts: Mapping[tuple[str, str], str],
    shapes: Mapping[str, tuple[int, ...]],
    block: Any,
    apart: bool,
) -> Places:
    found: Places = {}
    own_ff_norm = any(part == "ff_out_norm" for part, _ in parts)  # HF's Gemma 2
    names = {
        "o": "atten_func.output_projection",
        "down": "ff.w2",
        "attn_norm": "pre_atten_norm",
        "after_attention": "post_atten_norm",
        "ff_norm": "ff.pre_ff_norm" if own_ff_norm else "post_atten_norm",
        "ff_out_norm": "ff.post_ff_norm",
        "q_norm": "atten_func.query_norm",
        "k_norm": "atten_func.key_norm",
    }
    for (part, kind), name in parts.items():
        if part in names:
            found[f"{at}{names[part]}.{kind}"] = (Span(name),)
    for kind in ("weight", "bias"):
        given = {part: name for (part, k), name in parts.items() if k == kind}
        if apart:
            for part, span in _apart(given, block.attn_config).items():
                found[f"{at}atten_func.{part}_projection.{kind}"] = (span,)
        elif qkv := _qkv(given, shapes, block.attn_config):
            found[f"{at}atten_func.qkv_projection.{kind}"] = qkv
        for name, spans in _inner(given, shapes, block.ff_config).items():
            found[f"{at}ff.{name}.{kind}"] = spans
    return found


def _apart(given: Mapping[str, str], attention: Any) -> dict[str, Span]:
    """Returns the spans of q, k and v as separate matrices."""
    if "qkv" not in given:
        return {part: Span(given[part]) for part in "qkv" if part in given}
    heads, groups, dim = attention.num_heads, attention.num_query_groups, attention.head_dim
    ends = [0, heads * dim, (heads + groups) * dim, (heads + 2 * groups) * dim]
    return {part: Span(given["qkv"], (ends[i], ends[i + 1])) for i, part in enumerate("qkv")}


def _qkv(
    given: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]], attention: Any
) -> tuple[Span, ...]:
    """Returns the spans of q, k and v within one matrix: one after another, or group by group."""
    heads, groups, dim = attention.num_heads, attention.num_query_groups, attention.head_dim
    if "qkv" in given:  # in HF's matrix they are blocks
        starts = {"q": 0, "k": heads * dim, "v": (heads + groups) * dim}
        names = dict.fromkeys("qkv", given["qkv"])
        if attention.qkv_transpose_before_split:
            return (Span(given["qkv"]),)
    elif {"q", "k", "v"} <= given.keys():
        starts = dict.fromkeys("qkv", 0)
        names = {part: given[part] for part in "qkv"}
    else:
        return ()
    if attention.qkv_transpose_before_split:
        ends = [0]
        for part in "qkv":
            ends.append(ends[-1] + shapes[names[part]][0])
        return tuple(Span(names[p], None, (ends[i], ends[i + 1])) for i, p in enumerate("qkv"))
    spans, row = [], 0
    for group in range(groups):
        for part, size in (("q", heads // groups * dim), ("k", dim), ("v", dim)):
            first = starts[part] + group * size
            spans.append(Span(names[part], (first, first + size), (row, row + size)))
            row += size
    return tuple(spans)


def _inner(
    given: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]], feed_forward: Any
) -> dict[str, tuple[Span, ...]]:
    """Returns the spans of gate and up: ``w1`` and ``w3``, or one after the other in ``w1``."""
    separate = feed_forward.type.name == "GATED"
    if {"gate", "up"} <= given.keys():
        if separate:
            return {"w1": (Span(given["gate"]),), "w3": (Span(given["up"]),)}
        rows = shapes[given["gate"]][0]
        return {
            "w1": (
                Span(given["gate"], None, (0, rows)),
                Span(given["up"], None, (rows, rows + shapes[given["up"]][0])),
            )
        }
    if "gate_up" in given:
        name, rows = given["gate_up"], shapes[given["gate_up"]][0]
        if separate:
            return {
                "w1": (Span(name, (0, rows // 2)),),
                "w3": (Span(name, (rows // 2, rows)),),
            }
        return {"w1": (Span(name),)}
    return {"w1": (Span(given["up"]),)} if "up" in given else {}


def uncovered(spans: Iterable[Span], rows: Mapping[str, int]) -> dict[str, str]:
    """Returns tensors with rows that are not in exactly one span, and what is wrong with them.

    Args:
        spans: spans of all parameters, except a tied head's.
        rows: number of rows of every tensor.
    """
    taken: dict[str, list[tuple[int, int]]] = {name: [] for name in rows}
    for span in spans:
        taken[span.tensor].append(span.source or (0, rows[span.tensor]))
    odd = {}
    for name, parts in taken.items():
        starts, ends = zip(*sorted(parts), strict=True) if parts else ((), ())
        if not parts:
            odd[name] = "is in no parameter"
        elif (*starts, rows[name]) != (0, *ends):
            used = ", ".join(f"{start} to {end}" for start, end in zip(starts, ends, strict=True))
            odd[name] = f"has {rows[name]} rows, of which {used} are used"
    return odd
