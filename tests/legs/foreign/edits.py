"""Changes to a converted file that others' files show."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from edgeverify.litert.flatbuffer import ModelFile
from edgeverify.litert.flatbuffer.graph import KV_INPUT
from edgeverify.litert.flatbuffer.instrument import write


def edited(source: Path, target: Path, *changes: Callable[[Any], None]) -> Path:
    """A copy whose object tree was changed."""
    file = ModelFile(source)
    for change in changes:
        change(file.model)
    write(file, target)
    return target


def renamed(**names: str) -> Callable[[Any], None]:
    """Signatures by other names."""

    def change(model: Any) -> None:
        for definition in model.signatureDefs:
            old = definition.signatureKey.decode()
            definition.signatureKey = names.get(old, old).encode()

    return change


def input_renamed(old: str, new: str) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        for definition in model.signatureDefs:
            for entry in definition.inputs:
                if entry.name.decode() == old:
                    entry.name = new.encode()

    return change


def names_wiped(model: Any) -> None:
    """Tensors without the names that litert-torch gives them."""
    for graph in model.subgraphs:
        for tensor in graph.tensors:
            tensor.name = b""


def copied(name: str, new: str) -> Callable[[Any], None]:
    """A second signature on the subgraph of one, with an output less."""

    def change(model: Any) -> None:
        for definition in list(model.signatureDefs):
            if definition.signatureKey.decode() == name:
                other = schema.SignatureDefT()
                other.signatureKey = new.encode()
                other.inputs, other.outputs = definition.inputs, definition.outputs[:1]
                other.subgraphIndex = definition.subgraphIndex
                model.signatureDefs.append(other)

    return change


def embedder_first(model: Any) -> None:
    """A signature without caches before all others, as of an embedder in the same file."""
    decode = next(d for d in model.signatureDefs if d.signatureKey == b"decode")
    other = schema.SignatureDefT()
    other.signatureKey = b"embed"
    other.inputs = [entry for entry in decode.inputs if entry.name == b"tokens"]
    other.outputs, other.subgraphIndex = decode.outputs[:1], decode.subgraphIndex
    model.signatureDefs.insert(0, other)


def cache_writes_hidden(model: Any) -> None:
    """A reshape that changes nothing between each cache and what writes into it."""
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.RESHAPE
    code.version = 1
    model.operatorCodes.append(code)
    for definition in model.signatureDefs:
        graph = model.subgraphs[definition.subgraphIndex]
        caches = {e.tensorIndex for e in definition.inputs if KV_INPUT.match(e.name.decode())}
        operators = []
        for op in graph.operators:
            first = int(op.inputs[0]) if op.inputs is not None and len(op.inputs) else -1
            written = model.operatorCodes[op.opcodeIndex].builtinCode
            if first in caches and written == schema.BuiltinOperator.DYNAMIC_UPDATE_SLICE:
                operators.append(_reshape(graph, first, len(model.operatorCodes) - 1))
                op.inputs = np.array([len(graph.tensors) - 1, *op.inputs[1:]], np.int32)
            operators.append(op)
        graph.operators = operators


def _reshape(graph: Any, tensor: int, code: int) -> Any:
    old = graph.tensors[tensor]
    new = schema.TensorT()
    new.shape, new.type, new.buffer, new.name = old.shape, old.type, 0, b"same"
    graph.tensors.append(new)
    op = schema.OperatorT()
    op.opcodeIndex = code
    op.inputs, op.outputs = [tensor], [len(graph.tensors) - 1]
    op.builtinOptionsType = schema.BuiltinOptions.ReshapeOptions
    op.builtinOptions = schema.ReshapeOptionsT()
    op.builtinOptions.newShape = [int(n) for n in old.shape]
    return op
