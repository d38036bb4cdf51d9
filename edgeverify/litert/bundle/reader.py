"""Reads a .litertlm: the container that LiteRT-LM loads, with its sections and metadata.

The file is a header and sections of bytes behind it, each at a multiple of 16 KB (litert-lm-builder
0.18.1, ``litertlm_core.py``). The header has ``LITERTLM``, three 32-bit numbers of the version, the
64-bit end of the header at byte 24, and from byte 32 on a flatbuffer (``LiteRTLMMetaData``). A
section of its own contains, as a protocol buffer, what the engine needs to know about the model
(``runtime/proto/llm_metadata.proto``). Both are read here without the builder, of which no other
part is needed.
"""

from __future__ import annotations

import shutil
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from flatbuffers import number_types  # type: ignore[import-untyped]
from flatbuffers.table import Table  # type: ignore[import-untyped]

from edgeverify.core.errors import ArtifactError
from edgeverify.litert.bundle.metadata import LLM_METADATA
from edgeverify.litert.bundle.protobuf import parse

MAGIC = b"LITERTLM"
_HEADER_END, _HEADER = 24, 32
MODEL, METADATA = "TFLiteModel", "LlmMetadataProto"
# Enum AnySectionDataType.
KINDS = {
    0: "none",
    1: "GenericBinaryData",
    2: "deprecated",
    3: MODEL,
    4: "SP_Tokenizer",
    5: METADATA,
    6: "HF_Tokenizer_Zlib",
    7: "TFLiteWeights",
    8: "EmbeddingMetadataProto",
    9: "ExecutorMetadataProto",
    10: "TtsMetadataProto",
    11: "AsrMetadataProto",
}
_COMPRESSED = "HF_Tokenizer_Zlib"
TOKENIZERS = {
    "SP_Tokenizer": "SentencePiece",
    _COMPRESSED: "Hugging Face tokenizer.json",
}
# A compressed tokenizer follows its length. The largest that is known, Gemma 3's, has 33 MB.
_LENGTH_BYTES, _MOST_TEXT = 8, 512 * 2**20
# The model that prefills and decodes, if a file contains several (an embedder, a drafter, …).
MODEL_TYPE, MAIN = "model_type", "tf_lite_prefill_decode"
# Union VData: how each kind of value is stored.
_VALUES = {
    1: number_types.Uint8Flags,
    2: number_types.Int8Flags,
    3: number_types.Uint16Flags,
    4: number_types.Int16Flags,
    5: number_types.Uint32Flags,
    6: number_types.Int32Flags,
    7: number_types.Float32Flags,
    8: number_types.BoolFlags,
    10: number_types.Uint64Flags,
    11: number_types.Int64Flags,
    12: number_types.Float64Flags,
}
_STRING = 9
_DAMAGE = (struct.error, IndexError, ValueError, TypeError, OverflowError, UnicodeDecodeError)


@dataclass(frozen=True)
class Section:
    """A part of the file: bytes ``start`` to ``end``, with a kind and its key-value items."""

    kind: str
    start: int
    end: int
    items: dict[str, Any] = field(default_factory=dict)

    @property
    def size(self) -> int:
        return self.end - self.start


@dataclass(frozen=True)
class Bundle:
    """A .litertlm.

    Attributes:
        path: the file.
        version: the version of the format, ``1.7.0``.
        facts: the key-value items of the whole file: author, …
        sections: the sections, in the file's order.
    """

    path: Path
    version: str
    facts: dict[str, Any]
    sections: tuple[Section, ...]

    def metadata(self) -> dict[str, Any]:
        """Returns the engine's metadata.

        It has the start and stop tokens, the model type, the longest context and the templates.
        Unknown fields are named ``field {number}``, without their content.

        Raises:
            ArtifactError: the metadata is damaged.
        """
        for section in self.sections:
            if section.kind == METADATA:
                with self.path.open("rb") as file:
                    file.seek(section.start)
                    data = file.read(section.size)
                try:
                    return parse(LLM_METADATA, data)
                except _DAMAGE as error:
                    raise _unreadable(self.path, f"its metadata is damaged: {error}") from error
        return {}

    @property
    def tokenizer(self) -> str | None:
        """The kind of the bundle's tokenizer, or None."""
        return next((TOKENIZERS[s.kind] for s in self.sections if s.kind in TOKENIZERS), None)

    def tokenizer_json(self) -> str | None:
        """Returns the text of the bundle's ``tokenizer.json``; None if it has no such tokenizer.

        Raises:
            ArtifactError: it is damaged, or larger than any tokenizer.
        """
        for section in self.sections:
            if section.kind == _COMPRESSED:
                with self.path.open("rb") as file:
                    file.seek(section.start)
                    data = file.read(section.size)
                try:
                    unpacker = zlib.decompressobj()
                    text = unpacker.decompress(data[_LENGTH_BYTES:], _MOST_TEXT)
                    if unpacker.unconsumed_tail:
                        raise ValueError(f"it has more than {_MOST_TEXT} bytes")
                    return text.decode()
                except (zlib.error, ValueError) as error:
                    raise _unreadable(self.path, f"its tokenizer is damaged: {error}") from error
        return None

    def model(self) -> Section:
        """Returns the section of the model that prefills and decodes.

        Raises:
            ArtifactError: there is none, or several that nothing distinguishes.
        """
        models = [section for section in self.sections if section.kind == MODEL]
        if len(models) > 1:
            models = [s for s in models if str(s.items.get(MODEL_TYPE)).lower() == MAIN]
        if len(models) != 1:
            kinds = ", ".join(section.kind for section in self.sections) or "none"
            raise ArtifactError(
                "has no single model that prefills and decodes",
                where=self.path,
                expected=f"one section {MODEL}, or one of them with {MODEL_TYPE} {MAIN}",
                fix=f"its sections are: {kinds}",
            )
        return models[0]

    def unpack(self, target: Path) -> None:
        """Writes the model's .tflite to ``target``.

        Raises:
            ArtifactError: as for ``model``.
            OSError: the target cannot be written.
        """
        section = self.model()
        with self.path.open("rb") as source, target.open("wb") as out:
            source.seek(section.start)
            left = section.size
            while left:
                chunk = source.read(min(left, 16 * 2**20))
                out.write(chunk)
                left -= len(chunk)
        shutil.copymode(self.path, target)


def is_bundle(path: Path) -> bool:
    """Checks whether a file begins like a .litertlm.

    Raises:
        ArtifactError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError as error:
        raise ArtifactError(
            f"cannot be read ({error.strerror})",
            where=path,
            expected="a .tflite or .litertlm file",
            fix="check the path and its permissions",
        ) from error


def read_bundle(path: Path) -> Bundle:
    """Reads the header of a .litertlm.

    Raises:
        ArtifactError: the file is not a .litertlm, or damaged, or cut short.
    """
    if not is_bundle(path):
        raise _unreadable(path, "it does not begin as one")
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(_HEADER)
        if len(head) < _HEADER:
            raise _unreadable(path, "it was cut short")
        version = ".".join(map(str, struct.unpack_from("<III", head, len(MAGIC))))
        (end,) = struct.unpack_from("<Q", head, _HEADER_END)
        if not _HEADER < end <= size:
            raise _unreadable(path, f"its header ends at byte {end} of {size}")
        header = file.read(end - _HEADER)
    try:
        root = Table(header, struct.unpack_from("<I", header)[0])
        facts = {k: v for part in _child(root, 0) for k, v in _items(part, 0)}
        sections = tuple(_section(t) for part in _child(root, 1) for t in _vector(part, 0))
    except _DAMAGE as error:
        raise _unreadable(path, f"its header is damaged: {error}") from error
    for section in sections:
        if not end <= section.start <= section.end <= size:
            place = f"bytes {section.start} to {section.end} of {size}"
            raise _unreadable(path, f"its section {section.kind} is at {place}")
    return Bundle(path, version, facts, sections)


@contextmanager
def model_of(path: Path) -> Iterator[Path]:
    """Yields the .tflite to read: the file itself or, for a .litertlm, a copy of its model.

    Errors of the copy name the original file.

    Raises:
        ArtifactError: the container is damaged, or has no single model.
    """
    if not is_bundle(path):
        yield path
        return
    with TemporaryDirectory() as folder:
        copy = Path(folder) / f"{path.stem}.tflite"
        read_bundle(path).unpack(copy)
        try:
            yield copy
        except ArtifactError as error:
            if error.where == str(copy):
                error.where = str(path)
            raise


def _section(table: Table) -> Section:
    kind = _number(table, 3, number_types.Uint8Flags)
    return Section(
        KINDS.get(kind, f"kind {kind}"),
        _number(table, 1, number_types.Uint64Flags),
        _number(table, 2, number_types.Uint64Flags),
        dict(_items(table, 0)),
    )


def _items(table: Table, slot: int) -> Iterator[tuple[str, Any]]:
    """Yields the pairs of a vector of ``KeyValuePair``."""
    for pair in _vector(table, slot):
        kind = _number(pair, 1, number_types.Uint8Flags)
        value: Any = None
        for held in _child(pair, 2):
            if kind == _STRING:
                value = _text(held, 0)
            elif kind in _VALUES:
                value = _number(held, 0, _VALUES[kind])
        yield _text(pair, 0), value


def _offset(table: Table, slot: int) -> int:
    return int(table.Offset(4 + 2 * slot))


def _child(table: Table, slot: int) -> Iterator[Table]:
    """Yields the table in a slot, if there is one."""
    if offset := _offset(table, slot):
        yield Table(table.Bytes, table.Indirect(offset + table.Pos))


def _vector(table: Table, slot: int) -> Iterator[Table]:
    if offset := _offset(table, slot):
        start = table.Vector(offset)
        at = partial(Table, table.Bytes)
        yield from (at(table.Indirect(start + 4 * i)) for i in range(table.VectorLen(offset)))


def _number(table: Table, slot: int, flags: Any) -> Any:
    offset = _offset(table, slot)
    return flags.py_type(table.Get(flags, offset + table.Pos) if offset else 0)


def _text(table: Table, slot: int) -> str:
    offset = _offset(table, slot)
    return bytes(table.String(offset + table.Pos)).decode() if offset else ""


def _unreadable(path: Path, reason: str) -> ArtifactError:
    return ArtifactError(
        f"cannot be read as a .litertlm ({reason})",
        where=path,
        expected="a whole .litertlm file",
        fix="get or build the file again",
    )
