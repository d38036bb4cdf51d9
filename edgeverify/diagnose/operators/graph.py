"""Lists a signature's operators as one flat list, including the bodies of composites.

A composite is an operator with its own graph. The runtime chooses whether a kernel replaces it or
its body is run. Here the body counts. Its tensors are named by the composites that lead to them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from edgeverify.diagnose.operators.kernels import Call
from edgeverify.litert.flatbuffer import Graph, ModelFile

# (operator numbers of the enclosing composites, the tensor's number in the innermost graph)
Tensor = tuple[tuple[int, ...], int]
# schema.fbs, enum TensorType. All floats are computed in float64.
DTYPES: dict[int, np.dtype[Any]] = {
    schema.TensorType.FLOAT32: np.dtype("<f4"),
    schema.TensorType.INT32: np.dtype("<i4"),
    schema.TensorType.INT64: np.dtype("<i8"),
    schema.TensorType.BOOL: np.dtype(bool),
}


@dataclass(frozen=True)
class FileOp:
    """One operator of a signature, at any depth.

    Attributes:
        way: numbers of the composites that contain it, outermost first.
        subgraph: its graph's number in the file.
        index: its number in that graph.
        call: what it computes.
        inputs, outputs: its tensors, without absent ones.
        tensor_name: name of its first output, which keeps the torch module's path.
    """

    way: tuple[int, ...]
    subgraph: int
    index: int
    call: Call
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    tensor_name: str

    @property
    def place(self) -> tuple[int, ...]:
        """Its number in the signature's graph and in each enclosing body."""
        return (*self.way, self.index)


class FlatGraph:
    """The operators of one signature, in execution order.

    Attributes:
        ops: the operators that compute; composites are replaced by their bodies.
        composites: number of an outermost composite → the composite's own op.
        inputs, outputs: name → tensor, of the signature.
    """

    def __init__(self, file: ModelFile, signature: str) -> None:
        self.file = file
        self.signature = file.signature(signature)
        self._graphs: dict[int, Graph] = {}
        self._alias: dict[Tensor, Tensor] = {}
        self._subgraph: dict[tuple[int, ...], int] = {}
        self.composites: dict[int, FileOp] = {}
        self.ops = tuple(self._flatten((), self.signature.subgraph))
        self.inputs = {name: ((), i) for name, i in self.signature.inputs.items()}
        self.outputs = {name: self.real(((), i)) for name, i in self.signature.outputs.items()}
        self.producer = {tensor: op for op in self.ops for tensor in op.outputs}
        self.consumers: dict[Tensor, list[FileOp]] = {}
        for op in self.ops:
            for tensor in dict.fromkeys(op.inputs):
                self.consumers.setdefault(tensor, []).append(op)

    def real(self, tensor: Tensor) -> Tensor:
        """Resolves a tensor that is another name of one across a composite's border."""
        while tensor in self._alias:
            tensor = self._alias[tensor]
        return tensor

    def constant(self, tensor: Tensor) -> np.ndarray | None:
        """Returns the value stored in the file, floats as float64; None if it is computed."""
        way, number = tensor
        raw = self._raw(way).tensors[number]
        span = self.file.buffer_span(raw.buffer)
        shape = () if raw.shape is None else tuple(int(n) for n in raw.shape)
        if span is None:
            # A tensor without elements has no bytes, and nothing computes it.
            return np.zeros(shape, np.int32) if 0 in shape else None
        if raw.type not in DTYPES:
            return None
        data = np.frombuffer(
            self.file.map, DTYPES[raw.type], count=span[1] // DTYPES[raw.type].itemsize,
            offset=span[0],
        ).reshape(shape)  # fmt: skip
        return data.astype(np.float64) if data.dtype.kind == "f" else data

    def _raw(self, way: tuple[int, ...]) -> Any:
        return self.file.model.subgraphs[self._subgraph[way]]

    def _graph(self, subgraph: int) -> Graph:
        if subgraph not in self._graphs:
            self._graphs[subgraph] = Graph(self.file.model, subgraph)
        return self._graphs[subgraph]

    def _flatten(self, way: tuple[int, ...], subgraph: int) -> Iterator[FileOp]:
        self._subgraph[way] = subgraph
        graph = self._graph(subgraph)
        for op in graph.ops:
            raw = graph.raw.operators[op.index]
            flat = self._op(way, subgraph, op.index)
            body = getattr(raw.builtinOptions2, "decompositionSubgraphIndex", -1)
            if not 0 <= body < len(self.file.model.subgraphs):
                yield flat
                continue
            if not way:
                self.composites[op.index] = flat
            inner = (*way, op.index)
            inside = self._graph(body).raw
            for outer, number in zip(flat.inputs, inside.inputs, strict=True):
                self._alias[inner, int(number)] = outer
            yield from self._flatten(inner, body)
            for outer, number in zip(flat.outputs, inside.outputs, strict=True):
                self._alias[outer] = self.real((inner, int(number)))

    def _op(self, way: tuple[int, ...], subgraph: int, index: int) -> FileOp:
        graph = self._graph(subgraph)
        op, raw = graph.ops[index], graph.raw.operators[index]
        out = graph.raw.tensors[op.outputs[0]]
        dtype = DTYPES.get(out.type, np.dtype(np.float32))
        call = Call(
            op.name,
            raw.builtinOptions if raw.builtinOptions is not None else raw.builtinOptions2,
            graph.shape(op.outputs[0]),
            np.dtype(np.float64) if dtype.kind == "f" else dtype,
        )
        return FileOp(
            way,
            subgraph,
            index,
            call,
            tuple(self.real((way, tensor)) for tensor in op.inputs),
            tuple((way, tensor) for tensor in op.outputs),
            graph.name(op.outputs[0]),
        )
