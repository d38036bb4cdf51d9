"""Lists the weights of a .tflite: their names, quantization and sizes."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from edgeverify.core.errors import EdgeVerifyError
from edgeverify.litert.flatbuffer import Graph, ModelFile, locate_taps
from edgeverify.litert.flatbuffer import quantization as quant
from edgeverify.litert.flatbuffer.weights import find_weights

# Ops whose constants of two axes or more are weights, if nothing shows their parameter.
_TAKING = ("FULLY_CONNECTED", "EMBEDDING_LOOKUP", "GATHER", "BATCH_MATMUL", "CONV_2D")
_KEPT_AS = ("float32", "float16", "bfloat16", "int16", "int8", "uint8", "int4", "uint4", "int2")


@dataclass(frozen=True)
class Weight:
    """One weight of a file.

    Attributes:
        name: the Generative API's parameter, ``transformer_blocks.0.ff.w1.weight``, or the tensor's
            own name if the graph does not show the parameter.
        dtype: the stored dtype.
        granularity: ``tensor``, ``channel``, ``block``, or ``""`` if there are no scales.
        block_size: the elements of a block, or None.
        shape: the shape of the tensor.
        size: bytes, without the scales of blocks.
        buffer: the number of the file's buffer; weights that share a buffer are tied.
    """

    name: str
    dtype: str
    granularity: str
    block_size: int | None
    shape: tuple[int, ...]
    size: int
    buffer: int

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


def weights_of(file: ModelFile) -> list[Weight]:
    """Returns every weight of every signature once, in the order of execution.

    Raises:
        ArtifactError: the parameters of a quantized weight do not fit it.
    """
    found: dict[tuple[str, int], Weight] = {}
    buffers: set[int] = set()
    # A signature with logits names all weights; an extra weight of another is found by its op.
    for name in sorted(file.signatures, key=lambda n: "logits" not in file.signatures[n].outputs):
        graph, taken = _named(file, name)
        for label, tensor in taken:
            constant = quant.constant_of(graph, tensor)
            buffer = graph.raw.tensors[constant].buffer
            key = (label, buffer)
            if key in found or (not label and buffer in buffers):
                continue
            weight = _weight(file, graph, label, constant)
            if weight is not None:
                found[key] = weight
                buffers.add(buffer)
    return list(found.values())


def _named(file: ModelFile, signature: str) -> tuple[Graph, list[tuple[str, int]]]:
    """Returns a signature's graph and its weights by parameter; the name is empty without one."""
    try:
        weights = find_weights(file, signature, locate_taps(file, signature))
    except (EdgeVerifyError, LookupError):  # no language model, or one of another form
        graph = file.graph(signature)
        return graph, [("", tensor) for tensor in _by_op(graph)]
    graph = weights.graph
    known = [*weights.tensors.items()]
    taken = {tensor for _, tensor in known}
    return graph, [*known, *(("", tensor) for tensor in _by_op(graph) if tensor not in taken)]


def _by_op(graph: Graph) -> Iterable[int]:
    """Yields the constants of two axes or more that a projection or a look-up takes."""
    for op in graph.ops:
        if op.name in _TAKING:
            for tensor in op.inputs:
                if graph.is_constant(tensor) and len(graph.shape(tensor)) > 1:
                    yield quant.constant_of(graph, tensor)


def _weight(file: ModelFile, graph: Graph, label: str, tensor: int) -> Weight | None:
    raw = graph.raw.tensors[tensor]
    span = None if tensor in graph.producer else file.buffer_span(raw.buffer)
    dtype = quant.DTYPES.get(raw.type, str(raw.type))
    if span is None or dtype not in _KEPT_AS:
        return None  # computed from constants, or numbers of positions
    found = quant.read(file, graph, tensor)
    scaled = found is not None and dtype not in ("float16", "bfloat16")
    return Weight(
        label or (raw.name or b"").decode(errors="replace"),
        dtype,
        found.granularity if found is not None and scaled else "",
        found.block_size if found is not None else None,
        graph.shape(tensor),
        span[1],
        raw.buffer,
    )


def totals(weights: Iterable[Weight]) -> dict[str, dict[str, int]]:
    """Sums the weights: dtype → tensors, elements and bytes; a tied table counts once."""
    each = {weight.buffer: weight for weight in weights}
    found: dict[str, dict[str, Any]] = {}
    for weight in each.values():
        entry = found.setdefault(weight.dtype, {"tensors": 0, "elements": 0, "bytes": 0})
        entry["tensors"] += 1
        entry["elements"] += weight.elements
        entry["bytes"] += weight.size
    return found
