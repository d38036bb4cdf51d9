"""The ways a converted file is changed: a constant's values, or the table's links.

Every edit writes a copy; the file that it starts from stays as it is.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgeverify.litert.flatbuffer import Graph, ModelFile, locate_taps
from edgeverify.litert.flatbuffer.graph import Op, Signature
from edgeverify.litert.flatbuffer.instrument import write

Values = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Place:
    """One signature of a file, with its taps.

    Attributes:
        file, graph, signature: as ``flatbuffer`` has them.
        taps: tap → tensor.
    """

    file: ModelFile
    graph: Graph
    signature: Signature
    taps: dict[str, int]

    def maker(self, tap: str, *kinds: str) -> Op:
        """The op that makes a tap; with ``kinds``, the nearest of these before it."""
        tensor = self.taps[tap]
        if not kinds:
            return self.graph.producer[tensor]
        return next(op for op in self.graph.backward(tensor, lambda _: True) if op.name in kinds)

    def user(self, tap: str, *kinds: str) -> Op:
        """The first op of these kinds that uses a tap, directly or through others."""
        return next(
            op for op in self.graph.forward(self.taps[tap], lambda _: True) if op.name in kinds
        )

    def between(self, first: str, last: str, kind: str) -> list[Op]:
        """The ops of a kind on the ways from one tap to another, in execution order."""
        inside = self.graph.descendants(self.taps[first]) & self.graph.ancestors(self.taps[last])
        return [op for op in self.graph.ops if op.name == kind and op.outputs[0] in inside]

    def constant_of(self, op: Op) -> int:
        """The op's first constant input: of a projection, its weight."""
        return next(tensor for tensor in op.inputs if self.graph.is_constant(tensor))

    def raw(self, op: Op) -> Any:
        """The op in the object tree."""
        return self.graph.raw.operators[op.index]


def places(file: ModelFile) -> list[Place]:
    """All signatures of a file."""
    return [
        Place(
            file,
            file.graph(name),
            signature,
            {tap: ref.tensor for tap, ref in locate_taps(file, name).taps.items()},
        )
        for name, signature in file.signatures.items()
    ]


def change_constant(
    source: Path, target: Path, change: Values, find: Callable[[Place], int]
) -> None:
    """The constant that ``find`` returns is changed, in all signatures: they share its buffer.

    ``change`` takes and returns a float32 array of the constant's shape.
    """
    file = ModelFile(source)
    shutil.copyfile(source, target)
    place = places(file)[-1]
    tensor = find(place)
    span = file.buffer_span(place.graph.raw.tensors[tensor].buffer)
    assert span is not None, "the constant has no data"
    shape = place.graph.shape(tensor)
    values = np.memmap(target, np.float32, "r+", offset=span[0], shape=(span[1] // 4,))
    values[:] = np.asarray(change(np.array(values).reshape(shape)), np.float32).ravel()
    values.flush()


def rewire(
    source: Path, target: Path, change: Callable[[Place], None], only: str | None = None
) -> None:
    """The object tree is changed in all signatures, or in one."""
    file = ModelFile(source)
    for place in places(file):
        if only is None or place.signature.name == only:
            change(place)
    write(file, target)


def replace_inputs(place: Place, op: Op, new: dict[int, int]) -> None:
    """An op reads other tensors: position among its inputs → tensor."""
    inputs = np.array(place.raw(op).inputs, np.int32)
    for position, tensor in new.items():
        inputs[position] = tensor
    place.raw(op).inputs = inputs


def exchange_inputs(place: Place, op: Op, one: int = 0, other: int = 1) -> None:
    """Two inputs of an op change places."""
    inputs = place.raw(op).inputs
    replace_inputs(place, op, {one: int(inputs[other]), other: int(inputs[one])})


def share_buffer(place: Place, tensor: int, source: int) -> None:
    """A constant reads another constant's buffer."""
    tensors = place.graph.raw.tensors
    tensors[tensor].buffer = tensors[source].buffer
