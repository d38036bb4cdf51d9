"""Subgraphs made by hand, as they stand in a .tflite, for tests of what is told by topology."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from flatbuffers import flexbuffers  # type: ignore[import-untyped]

from edgeverify.flatbuffer import Located, Signature, TapRef
from edgeverify.flatbuffer.graph import Graph

FLOAT32, INT32 = schema.TensorType.FLOAT32, schema.TensorType.INT32
COMPOSITE = schema.BuiltinOperator.STABLEHLO_COMPOSITE


class Sketch:
    """A subgraph as it is drawn: tensors by number, ops in order of execution."""

    def __init__(self) -> None:
        self.tensors: list[Any] = []
        self.buffers: list[Any] = [SimpleNamespace(data=None, offset=0)]
        self.operators: list[Any] = []
        self.codes: list[Any] = []

    def tensor(self, *shape: int, dtype: int = FLOAT32, buffer: int = 0) -> int:
        """A tensor that an op makes or that comes from outside."""
        name = f"tensor_{len(self.tensors)}".encode()
        self.tensors.append(
            SimpleNamespace(shape=np.array(shape), type=dtype, buffer=buffer, name=name)
        )
        return len(self.tensors) - 1

    def constant(self, values: Any) -> int:
        """A float32 or int32 constant with a buffer of its own."""
        array = np.asarray(values)
        array = array.astype(np.int32 if array.dtype.kind == "i" else np.float32)
        data = np.frombuffer(array.tobytes(), np.uint8)
        self.buffers.append(SimpleNamespace(data=data, offset=0))
        dtype = INT32 if array.dtype == np.int32 else FLOAT32
        return self.tensor(*array.shape, dtype=dtype, buffer=len(self.buffers) - 1)

    def weight(self, *shape: int) -> int:
        """A constant whose values do not matter here."""
        return self.constant(np.arange(math.prod(shape), dtype=np.float32).reshape(shape))

    def op(self, name: str, *inputs: int, shape: tuple[int, ...], **attributes: Any) -> int:
        """Adds an op (a composite, if its name is no builtin's); returns what it makes."""
        code = getattr(schema.BuiltinOperator, name, COMPOSITE)
        options = None
        if code == COMPOSITE:
            stored = np.frombuffer(bytes(flexbuffers.Dumps(attributes)), np.uint8)
            options = SimpleNamespace(name=name.encode(), compositeAttributes=stored)
        self.codes.append(SimpleNamespace(builtinCode=code, deprecatedBuiltinCode=0))
        made = self.tensor(*shape)
        self.operators.append(
            SimpleNamespace(
                opcodeIndex=len(self.codes) - 1,
                inputs=inputs,
                outputs=(made,),
                builtinOptions2=options,
            )
        )
        return made

    def graph(self) -> Graph:
        subgraph = SimpleNamespace(tensors=self.tensors, operators=self.operators)
        model = SimpleNamespace(
            subgraphs=[subgraph], operatorCodes=self.codes, buffers=self.buffers
        )
        return Graph(model, 0)

    def file(self, signature: Signature) -> Any:
        """As much of a ``ModelFile`` as its constants are read by; one signature."""
        spans, data = {}, b""
        for number, buffer in enumerate(self.buffers):
            if buffer.data is not None:
                spans[number] = (len(data), len(buffer.data))
                data += buffer.data.tobytes()
        graphs, signatures = {signature.name: self.graph()}, {signature.name: signature}
        return SimpleNamespace(
            map=data,
            buffer_span=spans.get,
            graph=graphs.__getitem__,
            signature=signatures.__getitem__,
        )


def located(**tensors: int) -> Located:
    """Taps by name, ``_`` for a dot: of one token, one head and no particular order of axes."""
    return Located({name.replace("__", "."): TapRef(t, (1,), (0,)) for name, t in tensors.items()})
