"""Changes single operators of a .tflite, for tests that must see the very operator named."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from edgeverify.diagnose.operators.graph import FileOp, FlatGraph
from edgeverify.litert.flatbuffer import Graph, ModelFile
from edgeverify.litert.flatbuffer.instrument import write

Choose = Callable[[FileOp], bool]


class Editor:
    """A file, one of its signatures, and what is changed in it.

    Attributes:
        flat: the signature's operators as they were.
        edited: places of the operators that were changed.
    """

    def __init__(self, path: Path, signature: str) -> None:
        self.file = ModelFile(path)
        self.model = self.file.model
        self.flat = FlatGraph(self.file, signature)
        self.edited: list[tuple[int, ...]] = []

    def save(self, target: Path) -> None:
        write(self.file, target)

    def op(
        self, name: str, number: int = 0, *, module: str = "", depth: int | None = None
    ) -> FileOp:
        """The ``number``-th operator of that type whose tensor's name has ``module`` in it."""
        found = [
            op
            for op in self.flat.ops
            if op.call.name == name
            and module in op.tensor_name
            and (depth is None or len(op.way) == depth)
        ]
        return found[number]

    def raw(self, op: FileOp) -> Any:
        return self.model.subgraphs[op.subgraph].operators[op.index]

    def constant(self, op: FileOp, position: int) -> np.ndarray:
        """The float32 or int32 constant that an operator takes, as a copy."""
        graph = Graph(self.model, op.subgraph)
        tensor = int(self.raw(op).inputs[position])
        span = self.file.buffer_span(graph.raw.tensors[tensor].buffer)
        assert span is not None, "no constant"
        kind = np.float32 if graph.raw.tensors[tensor].type == 0 else np.int32
        data = self.file.map[span[0] : span[0] + span[1]]
        return np.frombuffer(data, kind).reshape(graph.shape(tensor)).copy()

    def set_constant(self, op: FileOp, position: int, array: np.ndarray) -> None:
        """Gives this operator alone another constant."""
        graph = self.model.subgraphs[op.subgraph]
        raw = self.raw(op)
        buffer = schema.BufferT()
        buffer.data = np.frombuffer(np.ascontiguousarray(array).tobytes(), np.uint8)
        tensor = copy.copy(graph.tensors[int(raw.inputs[position])])
        tensor.buffer = len(self.model.buffers)
        tensor.shape = np.array(array.shape, np.int32)
        self.model.buffers.append(buffer)
        self._take(op, position, len(graph.tensors))
        graph.tensors.append(tensor)
        self.edited.append(op.place)

    def scale(self, op: FileOp, position: int, factor: float, element: int | None = None) -> None:
        """Multiplies a constant, or one element of it."""
        array = self.constant(op, position)
        if element is None:
            array = (array * np.float32(factor)).astype(array.dtype)
        else:
            array.flat[element] *= factor
        self.set_constant(op, position, array)

    def swap(self, op: FileOp, first: int = 0, second: int = 1) -> None:
        """Exchanges two inputs of an operator."""
        inputs = self.raw(op).inputs
        a, b = int(inputs[first]), int(inputs[second])
        self._take(op, first, b)
        self._take(op, second, a)
        self.edited.append(op.place)

    def rewire(self, op: FileOp, position: int, tensor: int) -> None:
        """Lets an operator read another tensor of its own graph."""
        self._take(op, position, tensor)
        self.edited.append(op.place)

    def become(self, op: FileOp, name: str, options: Any = None, kind: int = 0) -> None:
        """Makes an operator one of another type."""
        code = schema.OperatorCodeT()
        code.builtinCode = getattr(schema.BuiltinOperator, name)
        code.deprecatedBuiltinCode = min(code.builtinCode, 127)
        code.version = 1
        raw = self.raw(op)
        raw.opcodeIndex = len(self.model.operatorCodes)
        self.model.operatorCodes.append(code)
        raw.builtinOptions, raw.builtinOptionsType = options, kind
        self.edited.append(op.place)

    def as_reshape(self, op: FileOp) -> None:
        """Writes a transposition as a reshape to the same shape: no element moves."""
        self.set_constant(op, 1, np.array(op.call.shape, np.int32))
        self.edited.pop()
        self.become(op, "RESHAPE")

    def _take(self, op: FileOp, position: int, tensor: int) -> None:
        raw = self.raw(op)
        raw.inputs = np.array(raw.inputs, np.int32)
        raw.inputs[position] = tensor
