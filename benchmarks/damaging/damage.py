"""Damages files as transfers, disks and faulty writers do: seeded, in several ways and sizes."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

# A .litertlm's header ends before its first section, at 16 KB; the tables of a .tflite are at both
# ends of the file and between its buffers.
HEAD = 16 * 2**10
# Likely values of a damaged 32-bit number, besides any other: none, the largest, negative.
_NUMBERS = (0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


@dataclass(frozen=True)
class Damage:
    """One way to damage a file.

    Attributes:
        kind: a name of ``KINDS``.
        size: how much: bits, bytes or numbers; for ``truncated``, the per cent that are left.
        seed: chooses the places.
    """

    kind: str
    size: int
    seed: int

    def __str__(self) -> str:
        return f"{self.kind} {self.size}, seed {self.seed}"

    def apply(self, data: bytes) -> bytes:
        """Returns the damaged contents, which always differ from the original ones."""
        rng = np.random.default_rng([self.seed, self.size, list(KINDS).index(self.kind)])
        change, _ = KINDS[self.kind]
        return change(data, self.size, rng)


def plan(count: int, seed: int = 0) -> Iterator[Damage]:
    """Plans ``count`` damages, with every kind and every size in turn."""
    each = [(kind, size) for kind, (_, sizes) in KINDS.items() for size in sizes]
    for index in range(count):
        kind, size = each[index % len(each)]
        yield Damage(kind, size, seed + index)


def write(damage: Damage, source: Path, target: Path) -> None:
    """Writes a damaged copy of ``source``."""
    target.write_bytes(damage.apply(source.read_bytes()))


def _truncated(data: bytes, size: int, rng: np.random.Generator) -> bytes:
    left = len(data) * size // 100
    return data[: max(0, left - int(rng.integers(1, 64)))]


def _bits(data: bytes, size: int, rng: np.random.Generator, end: int | None = None) -> bytes:
    changed = np.frombuffer(data, np.uint8).copy()
    # Without repetition, because a bit flipped twice is undamaged again.
    places = rng.choice(8 * (end or len(data)), size, replace=False)
    np.bitwise_xor.at(changed, places // 8, (1 << (places % 8)).astype(np.uint8))
    return changed.tobytes()


def _head_bits(data: bytes, size: int, rng: np.random.Generator) -> bytes:
    return _bits(data, size, rng, min(HEAD, len(data)))


def _offsets(data: bytes, size: int, rng: np.random.Generator) -> bytes:
    """Changes aligned 32-bit numbers where offsets, counts and indices are.

    These are near the ends of the file, and near the start of the model in a .litertlm.
    """
    words = np.frombuffer(data[: len(data) // 4 * 4], "<u4").copy()
    reach, model = HEAD // 4, max(0, data.find(b"TFL3")) // 4
    starts = (0, model, max(0, len(words) - reach))
    near = np.unique([n for s in starts for n in range(s, min(s + reach, len(words)))])
    for place in rng.choice(near, size, replace=False):
        old = int(words[place])
        likely = [*_NUMBERS, old + int(rng.integers(-64, 65)), int(rng.integers(2**32))]
        new = likely[int(rng.integers(len(likely)))] % 2**32
        words[place] = np.uint32(old ^ 1 if new == old else new)
    return words.tobytes() + data[len(data) // 4 * 4 :]


def _graph(data: bytes, size: int, rng: np.random.Generator) -> bytes:
    """Changes numbers of the graph: the table stays well-formed, but its graph is invalid.

    The runtime verifies the table before it reads it, and some of the table's contents afterwards.
    """
    start = max(0, data.find(b"TFL3") - 4)  # after the header of a .litertlm
    changed = bytearray(data)
    model = schema.Model.GetRootAs(changed, start)
    for _ in range(size):
        _change(model, changed, rng)
    return bytes(changed) if changed != data else _offsets(data, size, rng)


def _change(model: Any, data: bytearray, rng: np.random.Generator) -> None:
    """Changes one number in place: of an op, of a tensor, or of a signature."""

    def one(table: Any, name: str) -> Any:
        return getattr(table, name)(int(rng.integers(getattr(table, f"{name}Length")())))

    def put(table: Any, slot: int, form: str, number: int) -> None:
        if offset := table._tab.Offset(4 + 2 * slot):  # a default is not stored
            struct.pack_into(form, data, table._tab.Pos + offset, number)

    graph = one(model, "Subgraphs")
    op, tensor, entry = one(graph, "Operators"), one(graph, "Tensors"), one(model, "SignatureDefs")
    some = [0, 1, graph.TensorsLength() - 1, graph.TensorsLength(), 2**31 - 1, -1]
    number = some[int(rng.integers(len(some)))]
    match int(rng.integers(8)):
        case 0 if op.InputsLength():
            op.InputsAsNumpy()[int(rng.integers(op.InputsLength()))] = number
        case 1:
            op.OutputsAsNumpy()[0] = number
        case 2:
            put(op, 0, "<I", int(rng.integers(model.OperatorCodesLength() + 1)))
        case 3:
            put(tensor, 1, "<b", int(rng.integers(23)))
        case 4:
            put(tensor, 2, "<I", int(rng.integers(model.BuffersLength() + 1)))
        case 5 if tensor.ShapeLength():
            wrong = [0, 1, 3, 2**15, 2**30, -1][int(rng.integers(6))]
            tensor.ShapeAsNumpy()[int(rng.integers(tensor.ShapeLength()))] = wrong
        case 6:
            put(one(model, "OperatorCodes"), 3, "<i", int(rng.integers(210)))
        case _:
            put(one(entry, "Inputs"), 1, "<I", abs(number))


def _overwritten(data: bytes, size: int, rng: np.random.Generator) -> bytes:
    """Replaces a run of bytes anywhere in the file by other bytes."""
    start = int(rng.integers(0, max(1, len(data) - size)))
    noise = bytes(rng.integers(0, 256, size, np.uint8))
    old = data[start : start + size]
    noise = noise if noise[: len(old)] != old else bytes(b ^ 0xFF for b in old)
    return (data[:start] + noise + data[start + size :])[: len(data)]


def _zeroed(data: bytes, size: int, rng: np.random.Generator) -> bytes:
    """Zeroes a run in the head, as if it was never written."""
    start = int(rng.integers(0, max(1, min(HEAD, len(data)) - size)))
    changed = data[:start] + bytes(size) + data[start + size :]
    return changed if changed != data else _bits(data, 1, rng)


def _shifted(data: bytes, size: int, rng: np.random.Generator) -> bytes:
    """Removes bytes in the middle, so that everything after them moves."""
    start = int(rng.integers(8, max(9, len(data) - size)))
    return data[:start] + data[start + size :]


Change = Callable[[bytes, int, np.random.Generator], bytes]
KINDS: dict[str, tuple[Change, tuple[int, ...]]] = {
    "truncated": (_truncated, (1, 10, 50, 90, 100)),
    "bits flipped": (_bits, (1, 16, 256, 4096)),
    "bits of the head flipped": (_head_bits, (1, 4, 32)),
    "offsets changed": (_offsets, (1, 2, 8, 64)),
    "graph changed": (_graph, (1, 4, 16)),
    "overwritten": (_overwritten, (16, 1024)),
    "zeroed": (_zeroed, (4, 64, 1024)),
    "shifted": (_shifted, (1, 4, 4096)),
}
