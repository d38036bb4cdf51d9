"""Writes a copy of a .tflite that also returns its taps and can be fed in the middle.

Only the table is rebuilt. Weights are streamed from file to file behind the table, where files
above 2 GB keep them anyway (schema.fbs, ``Buffer.offset`` and ``Buffer.size``). So no copy of the
weights passes through memory, and files of every size are handled in the same way.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import flatbuffers  # type: ignore[import-untyped]
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from edgeverify.core import taps as tap_names
from edgeverify.core.store import entries
from edgeverify.litert.flatbuffer.graph import IDENTIFIER, INLINE_BYTES, ModelFile, Signature
from edgeverify.litert.flatbuffer.locate import Located, TapRef, locate_taps
from edgeverify.litert.flatbuffer.skeleton import Skeleton

TAP = "tap:"
INJECT = "inject:"
ISOLATED = "isolated:"
METADATA = "edgeverify.instrumentation"
# The runtime requires 16 (schema.fbs, Buffer.data, force_align); 64 keeps weights on cache lines.
ALIGNMENT = 64
_PLACEHOLDER = 2**40
# The cache keeps a smaller copy whole, and only the table of a larger one.
LARGEST_KEPT_COPY = 64 * 2**20


@dataclass(frozen=True)
class Instrumentation:
    """The description that an instrumented file contains of itself.

    Attributes:
        isolated: whether blocks read their inputs from inputs ``inject:…``.
        beside: whether they do so in additional signatures, ``isolated:{name}``.
        located: signature → the taps that are outputs, and why others are not.
    """

    isolated: bool
    located: Mapping[str, Located]
    beside: bool = False

    def signature(self, name: str, *, isolated: bool) -> str:
        """Returns the signature that runs one of the original, as a whole or block by block."""
        return ISOLATED + name if isolated and self.beside else name

    def to_json(self) -> str:
        signatures = {
            name: {
                "taps": {t: [r.tensor, r.view, r.order] for t, r in found.taps.items()},
                "missing": found.missing,
            }
            for name, found in self.located.items()
        }
        facts = {"isolated": self.isolated, "beside": self.beside, "signatures": signatures}
        return json.dumps(facts)

    @classmethod
    def find(cls, path: Path) -> Instrumentation | None:
        """Reads the description from a file; returns None if the file is not instrumented."""
        stored = ModelFile(path).metadata(METADATA)
        if stored is None:
            return None
        data = json.loads(stored)
        located = {
            name: Located(
                {t: TapRef(r[0], tuple(r[1]), tuple(r[2])) for t, r in entry["taps"].items()},
                entry["missing"],
            )
            for name, entry in data["signatures"].items()
        }
        return cls(data["isolated"], located, data["beside"])


def instrument(
    source: Path,
    target: Path,
    located: Mapping[str, Located] | None = None,
    *,
    isolate: bool = False,
    every_tap: bool = False,
    beside: bool = False,
) -> Instrumentation:
    """Writes a copy of ``source`` whose signatures also return their taps, as ``tap:{name}``.

    Args:
        source: a converted .tflite.
        target: the file to write.
        located: signature → the result of ``locate_taps``; computed if left out.
        isolate: also cut the residual stream between blocks. Block 0 reads its input from a new
            input ``inject:embed``, block i from ``inject:blocks.{i-1}.out``, and the final norm
            from that of the last block. The taps still show the computed values.
        every_tap: cut at every located tap instead: what reads the tap then reads ``inject:{tap}``.
            Such a copy also isolates the blocks.
        beside: leave the signatures uncut and add cut ones as ``isolated:{name}``, so that one copy
            of the weights serves both ways to run them.

    Returns:
        The copy's description of itself, which is also stored in the copy.

    Raises:
        ArtifactError: the source cannot be read.
        OSError: the target cannot be written.
    """
    skeleton, result = instrumented(
        source, located, isolate=isolate, every_tap=every_tap, beside=beside
    )
    skeleton.assemble(source, target)
    return result


def instrumented(
    source: Path,
    located: Mapping[str, Located] | None = None,
    *,
    isolate: bool = False,
    every_tap: bool = False,
    beside: bool = False,
) -> tuple[Skeleton, Instrumentation]:
    """Returns the copy that ``instrument`` writes, without the weights.

    Args:
        source, located, isolate, every_tap, beside: as for ``instrument``.

    Raises:
        ArtifactError: the source cannot be read.
    """
    file = ModelFile(source)
    if located is None:
        located = {name: locate_taps(file, name) for name in file.signatures}
    for name, found in located.items():
        signature = file.signature(name)
        _add_outputs(file.model, signature, found)
        points = tuple(found.taps) if every_tap else cut_points(signature.num_blocks)
        if beside:
            signature = _doubled(file.model, signature)
        if isolate or every_tap:
            _cut(file.model, signature, found, points)
    result = Instrumentation(isolate or every_tap, located, beside)
    _add_metadata(file.model, result.to_json().encode())
    return skeleton_of(file), result


def _add_outputs(model: Any, signature: Signature, found: Located) -> None:
    graph = model.subgraphs[signature.subgraph]
    outputs = [int(i) for i in graph.outputs]
    definition = model.signatureDefs[signature.position]
    named = set(signature.outputs.values())
    for tap, ref in found.taps.items():
        if ref.tensor not in outputs:
            outputs.append(ref.tensor)
        # CompiledModel cannot open a file in which a tensor has two names; see ``by_tap``.
        if ref.tensor not in named:
            named.add(ref.tensor)
            definition.outputs.append(_entry(TAP + tap, ref.tensor))
    graph.outputs = np.array(outputs, np.int32)


def by_tap(signature: Signature, found: Located) -> dict[str, str]:
    """Returns tap → the name of its output. A tensor that is two taps has one name.

    Args:
        signature: a signature of an instrumented copy.
        found: the taps that the copy returns.
    """
    names: dict[int, str] = {}
    for name, tensor in signature.outputs.items():
        names.setdefault(tensor, name)
    return {tap: names[ref.tensor] for tap, ref in found.taps.items() if ref.tensor in names}


def _doubled(model: Any, signature: Signature) -> Signature:
    """Adds a second signature with its own graph; both share weights through their buffers."""
    graph = copy.deepcopy(model.subgraphs[signature.subgraph])
    definition = copy.deepcopy(model.signatureDefs[signature.position])
    name = ISOLATED + signature.name
    definition.signatureKey = graph.name = name.encode()
    definition.subgraphIndex = len(model.subgraphs)
    model.subgraphs.append(graph)
    model.signatureDefs.append(definition)
    at = {"position": len(model.signatureDefs) - 1, "subgraph": definition.subgraphIndex}
    return replace(signature, name=name, **at)


def _cut(model: Any, signature: Signature, found: Located, points: tuple[str, ...]) -> None:
    graph = model.subgraphs[signature.subgraph]
    definition = model.signatureDefs[signature.position]
    inputs = [int(i) for i in graph.inputs]
    for tap in points:
        if tap not in found.taps:
            continue
        old = found.taps[tap].tensor
        new = len(graph.tensors)
        tensor = copy.copy(graph.tensors[old])
        tensor.name = (INJECT + tap).encode()
        tensor.buffer = 0
        graph.tensors.append(tensor)
        for op in graph.operators:
            if op.inputs is not None and (np.asarray(op.inputs) == old).any():
                op.inputs = np.where(np.asarray(op.inputs) == old, new, op.inputs).astype(np.int32)
        inputs.append(new)
        definition.inputs.append(_entry(INJECT + tap, new))
    graph.inputs = np.array(inputs, np.int32)


def cut_points(num_blocks: int) -> tuple[str, ...]:
    """Returns the taps at which to cut the residual stream: inputs of blocks and final norm."""
    return (tap_names.EMBED, *(tap_names.block(i, "out") for i in range(num_blocks)))


def _entry(name: str, tensor: int) -> Any:
    entry = schema.TensorMapT()
    entry.name = name.encode()
    entry.tensorIndex = tensor
    return entry


def _add_metadata(model: Any, data: bytes) -> None:
    buffer = schema.BufferT()
    buffer.data = np.frombuffer(data, np.uint8)
    entry = schema.MetadataT()
    entry.name = METADATA.encode()
    entry.buffer = len(model.buffers)
    model.buffers.append(buffer)
    model.metadata = [*(model.metadata or ()), entry]


def write(file: ModelFile, target: Path) -> None:
    """Writes a file's changed object tree; its weights are streamed from the original file.

    Raises:
        OSError: the target cannot be written.
    """
    skeleton_of(file).assemble(file.path, target)


def skeleton_of(file: ModelFile) -> Skeleton:
    """Packs a file's changed object tree as a table, and lists where its weights go behind it."""
    model = file.model
    moved: list[tuple[Any, str, int, int]] = []  # (holder, attribute, where from, bytes)
    for index, buffer in enumerate(model.buffers):
        # Added buffers have no place in the source; they are small and stay inside the table.
        span = file.buffer_span(index) if index < file.num_buffers else None
        if span is None:
            continue
        if span[1] > INLINE_BYTES:
            buffer.data, buffer.size = None, span[1]
            moved.append((buffer, "offset", *span))
        else:
            buffer.offset = buffer.size = 0
    for graph in model.subgraphs:
        for op in graph.operators:
            if op.largeCustomOptionsOffset:
                span = op.largeCustomOptionsOffset, op.largeCustomOptionsSize
                moved.append((op, "largeCustomOptionsOffset", *span))

    # The table's length does not depend on its offsets, as long as none has the default value.
    for holder, attribute, _, _ in moved:
        setattr(holder, attribute, _PLACEHOLDER)
    end = len(_pack(model))
    spans = []
    for holder, attribute, origin, size in moved:
        start = _aligned(end)
        setattr(holder, attribute, start)
        spans.append((start, origin, size))
        end = start + size
    return Skeleton(_pack(model), np.array(spans, np.int64).reshape(-1, 3))


def _aligned(position: int) -> int:
    return -(-position // ALIGNMENT) * ALIGNMENT


def _pack(model: Any) -> bytes:
    builder = flatbuffers.Builder(1 << 20)
    builder.Finish(model.Pack(builder), IDENTIFIER)
    return bytes(builder.Output())


@contextmanager
def instrumented_copy(
    path: Path,
    *,
    isolate: bool = False,
    every_tap: bool = False,
    beside: bool = False,
    root: Path | None = None,
) -> Iterator[Path]:
    """Makes a copy of ``path`` that also returns its taps.

    The cache stores a small copy as a whole. For a large file, the cache keeps only the table, and
    the weights are appended temporarily: they need as much room as the file, and no time.
    """
    cuts: Any = {"isolate": isolate, "every_tap": every_tap, "beside": beside}
    sources = entries.source_digest("litert/flatbuffer/*.py")
    key = entries.digest(sources, entries.file_digest(path, root=root), cuts)
    if path.stat().st_size <= LARGEST_KEPT_COPY:

        def make(target: Path) -> None:
            instrument(path, target, **cuts)

        yield entries.cached("instrumented", key, ".tflite", make, root=root)
        return

    def make_table(target: Path) -> None:
        skeleton, _ = instrumented(path, **cuts)
        skeleton.save(target)

    table = entries.cached("instrumented", key, ".safetensors", make_table, root=root)
    with entries.working_folder(path.parent) as folder:
        temporary = folder / path.name
        Skeleton.load(table).assemble(path, temporary)
        yield temporary
