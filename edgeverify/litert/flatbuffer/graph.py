"""Reads a .tflite: signatures, tensors, operators, and which op makes and takes which tensor.

The file is mapped, not loaded: weights stay on disk until their bytes are read, and
``edgeverify.core.store.mapped.forget`` releases the pages of an array of them. The schema is
tensorflow/lite/schema/schema.fbs, through ``ai_edge_litert.schema_py_generated``.
"""

from __future__ import annotations

import mmap
import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from edgeverify.core.errors import ArtifactError
from edgeverify.core.store.mapped import forget, register
from edgeverify.litert.flatbuffer.integrity import faults

IDENTIFIER = b"TFL3"
ZIP = b"PK\x03\x04"
KV_INPUT = re.compile(r"^kv_cache_([kv])_(\d+)$")
_OP_NAMES = {v: k for k, v in vars(schema.BuiltinOperator).items() if isinstance(v, int)}
# Offsets 0 and 1 are placeholders (schema.fbs, table Buffer): the data is not outside the table.
_FIRST_OUTSIDE_OFFSET = 2
# Smaller buffers (shapes, scales, metadata) are read into the tree, wherever they are.
INLINE_BYTES = 1024
# The exceptions of the generated readers on bytes that are not a table.
_DAMAGE = (
    struct.error,
    AttributeError,
    IndexError,
    ValueError,
    TypeError,
    UnicodeDecodeError,
)


@dataclass(frozen=True)
class Signature:
    """One entry point of a file.

    Attributes:
        name: e.g. ``"prefill_16"``.
        position: its index in the file's list of signatures.
        subgraph: the subgraph that computes it.
        inputs: name → tensor number in the subgraph.
        outputs: name → tensor number in the subgraph.
    """

    name: str
    position: int
    subgraph: int
    inputs: dict[str, int]
    outputs: dict[str, int]

    @property
    def num_blocks(self) -> int:
        """The number of transformer blocks, from the KV caches among the inputs."""
        found = (KV_INPUT.match(name) for name in self.inputs)
        return 1 + max((int(match.group(2)) for match in found if match), default=-1)


@dataclass(frozen=True)
class Op:
    """One operator: its position in execution order, its name, its tensors without absent ones.

    A composite has its own name, e.g. ``odml.rms_norm``.
    """

    index: int
    name: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


class ModelFile:
    """A .tflite on disk.

    Attributes:
        path: the file.
        signatures: name → signature, in the file's order.
        num_buffers: how many buffers the file has; the object tree may get more.
    """

    def __init__(self, path: Path) -> None:
        """Maps and parses ``path``.

        Raises:
            ArtifactError: the file is missing, cut short, or not a .tflite with signatures.
        """
        self.path = Path(path)
        try:
            with self.path.open("rb") as file:
                self.map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise _unreadable(path, str(error)) from error
        register(self.map)
        if self.map[:4] == ZIP:
            raise ArtifactError(
                "is a zip, such as a MediaPipe .task",
                where=path,
                expected="a .tflite or .litertlm",
                fix="take the .tflite out of it (unzip)",
            )
        if self.map[4:8] != IDENTIFIER:
            raise _unreadable(path, "it does not begin as one")
        try:
            self._table = schema.Model.GetRootAs(self.map, 0)
            self.signatures = {s.name: s for s in self._read_signatures()}
            self.num_buffers = self._table.BuffersLength()
            spans = [self.buffer_span(index) for index in range(self.num_buffers)]
        except _DAMAGE as error:
            raise _unreadable(path, f"its table is damaged: {error}") from error
        for index, span in enumerate(spans):
            if span is not None and span[0] + span[1] > len(self.map):
                raise _unreadable(path, f"buffer {index} ends after the file: it was cut short")

    @cached_property
    def model(self) -> Any:
        """The object tree (``schema.ModelT``), built when first needed, because that takes a while.

        Buffers contain views into the mapped file: those in the table, and also small ones behind
        it. A file above 2 GB has all buffers behind the table, scalars and shapes as well as
        weights.
        """
        try:
            model = schema.ModelT.InitFromObj(self._table)
            for index, buffer in enumerate(model.buffers or ()):
                span = self.buffer_span(index)
                if buffer.data is None and span is not None and span[1] <= INLINE_BYTES:
                    buffer.data = np.frombuffer(self.map, np.uint8, span[1], span[0])
            fault = next(faults(model), None)
        except _DAMAGE as error:
            raise _unreadable(self.path, f"its table is damaged: {error}") from error
        if fault is not None:
            raise _unreadable(self.path, f"its graph is damaged: {fault}")
        return model

    def _read_signatures(self) -> Iterator[Signature]:
        for position in range(self._table.SignatureDefsLength()):
            item = self._table.SignatureDefs(position)
            inputs = (item.Inputs(i) for i in range(item.InputsLength()))
            outputs = (item.Outputs(i) for i in range(item.OutputsLength()))
            yield Signature(
                item.SignatureKey().decode(),
                position,
                item.SubgraphIndex(),
                {entry.Name().decode(): entry.TensorIndex() for entry in inputs},
                {entry.Name().decode(): entry.TensorIndex() for entry in outputs},
            )

    def signature(self, name: str) -> Signature:
        """Returns the signature of that name.

        Raises:
            ArtifactError: there is none; the message lists the existing ones.
        """
        if name not in self.signatures:
            raise ArtifactError(
                f"has no signature {name!r}",
                where=self.path,
                expected=f"one of {', '.join(self.signatures) or '(none at all)'}",
                fix="convert the model again with the prefill lengths of the case",
            )
        return self.signatures[name]

    def subgraph_name(self, signature: str) -> str:
        """Returns the name of the signature's subgraph, or the signature's name if it has none."""
        raw = self.model.subgraphs[self.signature(signature).subgraph].name
        return raw.decode(errors="replace") if raw else signature

    def graph(self, signature: str) -> Graph:
        """Returns the graph that computes ``signature``."""
        return Graph(self.model, self.signature(signature).subgraph)

    def shape(self, signature: str, name: str) -> tuple[int, ...]:
        """Returns the shape of an input or output of a signature, by its name."""
        found = self.signature(signature)
        tensor = found.inputs.get(name, found.outputs.get(name))
        if tensor is None:
            raise KeyError(name)
        return self.graph(signature).shape(tensor)

    def kv_layout(self) -> str:
        """Returns ``default`` (K and V as BTNH) or ``transposed`` (K BNTH, V BNHT).

        The layout is read from the axis along which the cache is written, because shapes can be
        ambiguous (cache length = heads, or = head_dim).

        Raises:
            ArtifactError: no signature writes a KV cache in one of these layouts.
        """
        for name in sorted(self.signatures, key=lambda n: n != "decode"):
            graph = self.graph(name)
            signature = self.signatures[name]
            for which, axis in (("k", 2), ("v", 3)):
                update = graph.cache_update(signature, which, 0)
                if update is None:
                    break
                written = _written_axis(
                    graph.shape(update.inputs[0]), graph.shape(update.inputs[1])
                )
                if written == 1:
                    return "default"
                if written == axis:
                    return "transposed"
        raise ArtifactError(
            "its KV layout cannot be told",
            where=self.path,
            expected="inputs kv_cache_k_0 and kv_cache_v_0, written by DYNAMIC_UPDATE_SLICE",
            fix="convert the model with edgeverify convert",
        )

    def kv_cache_len(self) -> int:
        """Returns the number of rows of the KV cache."""
        axis = 1 if self.kv_layout() == "default" else 2
        return self.shape(next(iter(self.signatures)), "kv_cache_k_0")[axis]

    def buffer_span(self, buffer: int) -> tuple[int, int] | None:
        """Returns a buffer's place in the file, (first byte, bytes); None if it has no data."""
        item = self._table.Buffers(buffer)
        if item.Offset() >= _FIRST_OUTSIDE_OFFSET and item.Size():
            return item.Offset(), item.Size()
        if item.DataLength() == 0:
            return None
        return item.DataAsNumpy().ctypes.data - self._base, item.DataLength()

    def forget(self, index: int) -> None:
        """Releases the pages of a buffer; the next use reads them from the file again."""
        span = self.buffer_span(index)
        if span is not None and span[1]:
            forget(np.frombuffer(self.map, np.uint8, span[1], span[0]))

    @cached_property
    def _base(self) -> int:
        return np.frombuffer(self.map, np.uint8, count=1).ctypes.data

    def metadata(self, name: str) -> bytes | None:
        """Returns the bytes that the file's metadata has under a name, or None."""
        for index in range(self._table.MetadataLength()):
            item = self._table.Metadata(index)
            if item.Name() == name.encode() and (span := self.buffer_span(item.Buffer())):
                return self.map[span[0] : span[0] + span[1]]
        return None


class Graph:
    """One subgraph: operators in execution order and the links between them."""

    def __init__(self, model: Any, subgraph: int) -> None:
        self.model = model
        self.raw = model.subgraphs[subgraph]
        self.ops = tuple(self._read_op(i, op) for i, op in enumerate(self.raw.operators))
        self.producer: dict[int, Op] = {}
        self.consumers: dict[int, list[Op]] = {}
        for op in self.ops:
            for tensor in op.outputs:
                self.producer[tensor] = op
            for tensor in dict.fromkeys(op.inputs):
                self.consumers.setdefault(tensor, []).append(op)

    def _read_op(self, index: int, op: Any) -> Op:
        code = self.model.operatorCodes[op.opcodeIndex]
        name = _OP_NAMES[max(code.builtinCode, code.deprecatedBuiltinCode)]
        if name == "STABLEHLO_COMPOSITE":
            name = op.builtinOptions2.name.decode()
        inputs = () if op.inputs is None else tuple(int(i) for i in op.inputs if i >= 0)
        return Op(index, name, inputs, tuple(int(i) for i in op.outputs))

    def shape(self, tensor: int) -> tuple[int, ...]:
        shape = self.raw.tensors[tensor].shape
        return () if shape is None else tuple(int(n) for n in shape)

    def name(self, tensor: int) -> str:
        return self.raw.tensors[tensor].name.decode()

    def is_constant(self, tensor: int) -> bool:
        """Checks whether a tensor's value is in the file, directly or through ops on constants."""
        if tensor in self.producer:
            return all(self.is_constant(i) for i in self.producer[tensor].inputs)
        buffer = self.model.buffers[self.raw.tensors[tensor].buffer]
        return (buffer.data is not None and len(buffer.data) > 0) or buffer.offset > 0

    def constant(self, tensor: int, dtype: str = "<i4") -> np.ndarray | None:
        """Returns a small constant's values; None if computed, or large and outside the table."""
        data = self.model.buffers[self.raw.tensors[tensor].buffer].data
        if tensor in self.producer or data is None:
            return None
        return np.frombuffer(data.tobytes(), dtype).reshape(self.shape(tensor))

    def cache_update(self, signature: Signature, which: str, block: int) -> Op | None:
        """Returns the op that writes block ``block``'s ``k`` or ``v`` rows into its input cache."""
        cache = signature.inputs.get(f"kv_cache_{which}_{block}")
        for op in self.consumers.get(-1 if cache is None else cache, ()):
            if op.name == "DYNAMIC_UPDATE_SLICE" and op.inputs[0] == cache:
                return op
        return None

    def backward(self, tensor: int, through: Callable[[Op], bool]) -> Iterator[Op]:
        """Yields the ops that make ``tensor``, latest first.

        Continues with the inputs of an op if ``through(op)`` is true.
        """
        return self._walk(tensor, through, forward=False)

    def forward(self, tensor: int, through: Callable[[Op], bool]) -> Iterator[Op]:
        """Yields the ops that use ``tensor``, nearest first.

        Continues with the outputs of an op if ``through(op)`` is true.
        """
        return self._walk(tensor, through, forward=True)

    def _walk(self, tensor: int, through: Callable[[Op], bool], *, forward: bool) -> Iterator[Op]:
        seen: set[int] = set()
        front = [tensor]
        while front:
            ops: dict[int, Op] = {}
            for item in front:
                if forward:
                    ops.update((op.index, op) for op in self.consumers.get(item, ()))
                elif item in self.producer:
                    ops[self.producer[item].index] = self.producer[item]
            front = []
            for index in sorted(ops.keys() - seen, reverse=not forward):
                seen.add(index)
                yield ops[index]
                if through(ops[index]):
                    front += ops[index].outputs if forward else ops[index].inputs

    def ancestors(self, tensor: int, *, without: int | None = None) -> set[int]:
        """Returns ``tensor`` and the tensors that it depends on by paths that avoid ``without``."""
        found: set[int] = set()
        todo = [tensor]
        while todo:
            item = todo.pop()
            if item in found or item == without:
                continue
            found.add(item)
            if item in self.producer:
                todo += self.producer[item].inputs
        return found

    def descendants(self, tensor: int) -> set[int]:
        """Returns ``tensor`` and the tensors that depend on it."""
        found: set[int] = set()
        todo = [tensor]
        while todo:
            item = todo.pop()
            if item not in found:
                found.add(item)
                todo += [out for op in self.consumers.get(item, ()) for out in op.outputs]
        return found


def _written_axis(cache: tuple[int, ...], update: tuple[int, ...]) -> int | None:
    axes = [i for i, (a, b) in enumerate(zip(cache, update, strict=True)) if a != b]
    return axes[0] if len(axes) == 1 else None


def _unreadable(path: Path, reason: str) -> ArtifactError:
    return ArtifactError(
        f"cannot be read as a .tflite ({reason})",
        where=path,
        expected="a whole .tflite file with signatures",
        fix="get or convert the file again",
    )
