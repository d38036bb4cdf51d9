"""Reads config values from a .tflite: shapes, composites' attributes, tables of masks and RoPE."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from flatbuffers import flexbuffers  # type: ignore[import-untyped]

from edgeverify.audits.masks import window_of
from edgeverify.audits.model import Readings
from edgeverify.audits.of_hf_config import HEAD_NORMS, NONE, NORMS
from edgeverify.core import taps
from edgeverify.litert.flatbuffer import ModelFile
from edgeverify.litert.flatbuffer.graph import Graph, Op
from edgeverify.litert.flatbuffer.locate import LAYOUT_OPS
from edgeverify.litert.flatbuffer.weights import EMBEDDING, Weights

_ATTENTION = "scaled_dot_product_attention"
_ROOTS = ("RSQRT", "SQRT", "POW")
_NORM_KINDS = {"odml.rms_norm": "RMSNorm", "odml.group_norm": "LayerNorm"}
_MASK_OPS = LAYOUT_OPS | {"GATHER_ND", "SELECT_V2", "SELECT"}
# The frequencies are base ** -(2 i / n) in float32. Measured against float64: LiteRT-Torch's
# formula is off by 5 units in the last place (bases 6100 and 7100, 40 elements).
_ROPE_ULPS = 16


def of_file(file: ModelFile, weights: Weights, base: float | None) -> Readings:
    """Reads one signature of a converted file.

    Args:
        file: the .tflite.
        weights: weights of the file's signature ``decode``, which computes everything.
        base: the expected rotary base. The reading has this very value if the file's frequencies
            are those of this base, rounded.
    """
    out = Readings("file")
    graph, signature = weights.graph, weights.signature
    out.values["layers"] = signature.num_blocks
    out.values["vocabulary"] = graph.shape(signature.outputs[taps.LOGITS])[-1]
    if EMBEDDING in weights.tensors:
        out.values["width"] = graph.shape(weights.tensors[EMBEDDING])[-1]
        out.values["head bias"] = _yes("lm_head.bias" in weights.tensors)
    cap = _final_softcap(weights)
    out.values["final softcap"] = cap
    scale = _embedding_scale(weights)
    if scale is not None:  # else there is no scale, or it is in the table, whose bits are compared
        out.values["embedding scale"] = scale
    _rotary(out, file, weights, base)
    transposed = file.kv_layout() == "transposed"
    for block in range(signature.num_blocks):
        _block(out, weights, block, transposed)
    _norms(out, weights)
    _attention(out, weights)
    _windows(out, file, weights)
    return out


def of_composites(weights: Weights) -> Readings:
    """Reads the attributes of one signature's norms and attentions that are composites."""
    out = Readings("file")
    _norms(out, weights)
    _attention(out, weights)
    # A norm that was not found may be written out as single ops, or not be needed, because this
    # signature may return no logits.
    out.values = {k: v for k, v in out.values.items() if v != NONE or k.endswith("softcap")}
    return out


def _block(out: Readings, weights: Weights, block: int, transposed: bool) -> None:
    at, name = f"blocks.{block}.", f"transformer_blocks.{block}."
    cache = weights.graph.shape(weights.signature.inputs[f"kv_cache_k_{block}"])
    out.values[f"{at}head_dim"] = cache[3]
    out.values[f"{at}key/value heads"] = cache[1] if transposed else cache[2]
    query = weights.located.taps.get(taps.block(block, "attn.q"))
    if query is not None:
        out.values[f"{at}heads"] = math.prod(query.view) // weights_length(weights) // cache[3]
    shapes = {key: weights.graph.shape(tensor) for key, tensor in weights.tensors.items()}
    for field, part in (
        ("qkv bias", "atten_func.qkv_projection"),
        ("qkv bias", "atten_func.q_projection"),
        ("attention output bias", "atten_func.output_projection"),
        ("feed-forward bias", "ff.w2"),
    ):
        if f"{name}{part}.weight" in shapes:
            out.values[at + field] = _yes(f"{name}{part}.bias" in shapes)
    down, inner = shapes.get(f"{name}ff.w2.weight"), shapes.get(f"{name}ff.w1.weight")
    if down is not None:
        out.values[f"{at}feed-forward width"] = down[1]
    if down is not None and inner is not None:
        two = f"{name}ff.w3.weight" in shapes or inner[0] == 2 * down[1]
        out.values[f"{at}gated"] = _yes(two)


def weights_length(weights: Weights) -> int:
    """Returns the number of tokens that the signature takes."""
    return math.prod(weights.graph.shape(weights.signature.inputs["tokens"]))


def attributes(graph: Graph, op: Op) -> dict[str, Any]:
    """Returns a composite's attributes."""
    stored = graph.raw.operators[op.index].builtinOptions2.compositeAttributes
    return dict(flexbuffers.Loads(bytes(bytearray(stored)))) if stored is not None else {}


def _norms(out: Readings, weights: Weights) -> None:
    """Reads norms that are composites; reads nothing from norms written out as single ops."""
    known = {n: op for n, op in weights.norms.items() if op.name in _NORM_KINDS}
    if not known:
        return
    for block in range(weights.signature.num_blocks):
        at, name = f"blocks.{block}.", f"transformer_blocks.{block}."
        separate = f"{name}ff.pre_ff_norm" in known
        after = "attention output norm" if separate else "feed-forward norm"
        roles = {
            "attention norm": "pre_atten_norm",
            "feed-forward norm": "ff.pre_ff_norm",
            after: "post_atten_norm",
            "feed-forward output norm": "ff.post_ff_norm",
            "query norm": "atten_func.query_norm",
            "key norm": "atten_func.key_norm",
        }
        for field in (*NORMS, *HEAD_NORMS):
            _norm(out, at + field, weights.graph, known.get(name + roles.get(field, "-")))
    _norm(out, "final norm", weights.graph, known.get("final_norm"))


def _norm(out: Readings, field: str, graph: Graph, op: Op | None) -> None:
    if op is None and _has_roots(graph):
        out.unread[field] = "it is no composite, and may be written out as single operations"
        return
    out.values[field] = NONE if op is None else _NORM_KINDS[op.name]
    if op is None:
        return
    epsilon = attributes(graph, op).get("epsilon")
    if epsilon is None:
        out.unread[f"{field} eps"] = f"{op.name} has no epsilon"
    else:
        out.values[f"{field} eps"] = float(epsilon)


def _has_roots(graph: Graph) -> bool:
    """Whether a graph takes roots outside of composites, as a norm that is written out does."""
    return any(op.name in _ROOTS for op in graph.ops)


def _attention(out: Readings, weights: Weights) -> None:
    """Reads scale and softcap if the attention is a composite (the default layout)."""
    for op in weights.graph.ops:
        if _ATTENTION not in op.name:
            continue
        at, found = f"blocks.{weights.block_of(op)}.", attributes(weights.graph, op)
        out.values[f"{at}attention softcap"] = float(found["logit_cap"]) if "logit_cap" in found \
            else NONE  # fmt: skip
        if "scale" in found:
            out.values[f"{at}query scale"] = float(found["scale"])


def _scalars(graph: Graph, op: Op) -> Iterator[tuple[int, float]]:
    """Yields the scalar constants that an op takes, each with the other operand."""
    for scalar, other in (op.inputs, op.inputs[::-1]):
        if graph.is_constant(scalar) and math.prod(graph.shape(scalar)) == 1:
            value = graph.constant(scalar, "<f4")
            if value is not None:
                yield other, float(value.reshape(-1)[0])


def _final_softcap(weights: Weights) -> Any:
    graph = weights.graph
    tensor = weights.signature.outputs[taps.LOGITS]
    while (op := graph.producer.get(tensor)) is not None and op.name == "RESHAPE":
        tensor = op.inputs[0]
    if op is not None and op.name == "MUL":
        for other, value in _scalars(graph, op):
            made = graph.producer.get(other)
            if made is not None and made.name == "TANH":
                return value
    return NONE


def cap_is_folded(weights: Weights) -> bool:
    """Whether the LM head's constants are already divided by the final softcap.

    The converter multiplies them by the cap's inverse and removes the division.
    """
    graph = weights.graph
    tensor = weights.signature.outputs[taps.LOGITS]
    for op in graph.backward(tensor, lambda op: op.name != "FULLY_CONNECTED"):
        if op.name == "TANH":
            before = op.inputs[0]
            while (made := graph.producer.get(before)) is not None and made.name == "RESHAPE":
                before = made.inputs[0]
            return made is not None and made.name in ("FULLY_CONNECTED", "ADD")
    return False


def _embedding_scale(weights: Weights) -> float | None:
    ref = weights.located.taps.get(taps.EMBED)
    op = None if ref is None else weights.graph.producer.get(ref.tensor)
    if op is None or op.name != "MUL":
        return None
    return next((value for _, value in _scalars(weights.graph, op)), None)


def values(file: ModelFile, graph: Graph, tensor: int) -> np.ndarray | None:
    """Returns a float32 constant of any size, mapped; None if it is not one or has no own bytes."""
    raw = graph.raw.tensors[tensor]
    span = None if tensor in graph.producer else file.buffer_span(raw.buffer)
    if span is None or raw.type != schema.TensorType.FLOAT32:
        return None
    flat = np.frombuffer(file.map, np.float32, span[1] // 4, span[0])
    return flat.reshape(graph.shape(tensor))


def _rotary(out: Readings, file: ModelFile, weights: Weights, base: float | None) -> None:
    found = [t for t in weights.unknown if weights.graph.shape(t)[:-1] == (1, 1)]
    for tensor in found:
        table = values(file, weights.graph, tensor)
        if table is None or not is_rope(table):
            continue
        out.values["rotary elements"] = 2 * table.size
        out.values["rotary base"] = _base(table.reshape(-1), base)


def is_rope(table: np.ndarray) -> bool:
    """Whether a table contains frequencies: 1 for the first pair, falling from pair to pair."""
    flat = table.reshape(-1)
    return bool(flat.size > 1 and flat[0] == 1 and (np.diff(flat) < 0).all() and flat[-1] > 0)


def _base(table: np.ndarray, expected: float | None) -> float:
    """Returns a frequency table's base: the expected one if it gives this table, else a fit."""
    exponents = np.arange(table.size) / table.size
    if expected is not None:
        right = (float(expected) ** -exponents).astype(np.float32)
        if np.abs(right.view(np.int32) - table.view(np.int32)).max() <= _ROPE_ULPS:
            return float(expected)
    return float(float(table[-1]) ** (-1.0 / exponents[-1]))


def _windows(out: Readings, file: ModelFile, weights: Weights) -> None:
    """Reads which mask each block's attention takes, and which keys the mask lets through."""
    graph = weights.graph
    for tensor in weights.unknown:
        table = values(file, graph, tensor)
        if table is None or not is_mask(table):
            continue
        side = math.isqrt(table.size)
        window = window_of(table.reshape(side, side))
        for op in graph.forward(tensor, lambda op: op.name in _MASK_OPS):
            block = weights.block_of(op)
            if op.name not in _MASK_OPS and block < weights.signature.num_blocks:
                out.values.setdefault(f"blocks.{block}.window", window)


def is_mask(table: np.ndarray) -> bool:
    """Whether a constant is a square of zeros and values that softmax turns into zero."""
    side = math.isqrt(table.size)
    sides = [n for n in table.shape if n != 1]
    return sides == [side, side] and bool(((table == 0) | (table < -1e30)).all())


def _yes(value: bool) -> str:
    return "yes" if value else "no"
