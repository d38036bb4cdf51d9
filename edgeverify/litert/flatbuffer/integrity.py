"""Checks that every index in a .tflite's tables is in range.

The format's own verification checks only the tables' bytes. Whether an op's tensor exists is for
the reader to check; code that walks a graph may then rely on it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any


def faults(model: Any) -> Iterator[str]:
    """Yields the faults of an object tree, one line each, as they are found.

    Args:
        model: ``schema.ModelT``. All indices are checked: those of signatures, subgraphs, ops,
            tensors, operator codes and buffers. Each tensor must be made only once, and before it
            is used.
    """
    graphs, buffers = model.subgraphs or (), len(model.buffers or ())
    for number, graph in enumerate(graphs):
        at = f"subgraph {number}"
        tensors, operators = graph.tensors or (), graph.operators or ()
        for index, tensor in enumerate(tensors):
            if not 0 <= tensor.buffer < buffers:
                yield f"{at}: tensor {index} has buffer {tensor.buffer} of {buffers}"
            if tensor.shape is not None and min(tensor.shape, default=0) < 0:
                yield f"{at}: tensor {index} has the shape {list(tensor.shape)}"
        for index, op in enumerate(operators):
            if not 0 <= op.opcodeIndex < len(model.operatorCodes or ()):
                yield f"{at}: op {index} has operator code {op.opcodeIndex}"
        yield from _order(at, graph, len(tensors))
    for definition in model.signatureDefs or ():
        name = (definition.signatureKey or b"").decode(errors="replace")
        if not 0 <= definition.subgraphIndex < len(graphs):
            yield f"signature {name!r} is of subgraph {definition.subgraphIndex} of {len(graphs)}"
            continue
        count = len(graphs[definition.subgraphIndex].tensors or ())
        for entry in (*(definition.inputs or ()), *(definition.outputs or ())):
            if not 0 <= entry.tensorIndex < count:
                yield f"signature {name!r} has tensor {entry.tensorIndex} of {count}"


def _order(at: str, graph: Any, count: int) -> Iterator[str]:
    """Checks that ops use existing tensors, in an order in which they can be run."""
    made: dict[int, int] = {}
    for index, op in enumerate(graph.operators or ()):
        for tensor in _indices(op.outputs):
            if not 0 <= tensor < count:
                yield f"{at}: op {index} makes tensor {tensor} of {count}"
            elif tensor in made:
                yield f"{at}: op {made[tensor]} and op {index} make tensor {tensor}"
            made.setdefault(tensor, index)
    for index, op in enumerate(graph.operators or ()):
        for tensor in _indices(op.inputs):
            if not -1 <= tensor < count:  # -1: left out
                yield f"{at}: op {index} takes tensor {tensor} of {count}"
            elif made.get(tensor, -1) >= index:
                yield f"{at}: op {index} takes tensor {tensor}, which op {made[tensor]} makes"


def _indices(tensors: Any) -> Iterable[int]:
    return () if tensors is None else (int(tensor) for tensor in tensors)
