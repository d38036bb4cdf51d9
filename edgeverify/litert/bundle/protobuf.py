"""Reads a protocol buffer with a table of its fields, without generated code.

The wire format is that of https://protobuf.dev/programming-guides/encoding: each field is a key,
``number << 3 | kind``, and a value. A repeated field occurs several times, or is packed in one.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
_LONGEST_VARINT = 10  # bytes


@dataclass(frozen=True)
class Message:
    """A message type: field number → name and type.

    A type is ``int``, ``bool``, ``str``, ``float`` (32 bits) or a message; a list means repeated.
    """

    fields: Mapping[int, tuple[str, Any]]


def parse(message: Message, data: bytes) -> dict[str, Any]:
    """Returns the fields that a message contains.

    Args:
        message: the message's type.
        data: the message's bytes.

    Returns:
        Name → value; a field that the table lacks is returned as ``field {number}`` → its size in
        bytes.

    Raises:
        ValueError: the bytes are not such a message.
    """
    found: dict[str, Any] = {}
    for number, value in _split(data):
        if number not in message.fields:
            size = len(value) if isinstance(value, bytes) else 1
            found[f"field {number}"] = found.get(f"field {number}", 0) + size
            continue
        name, kind = message.fields[number]
        if isinstance(kind, list):
            packed = isinstance(value, bytes) and kind[0] in (int, bool)
            each = _varints(value) if packed else [value]
            found.setdefault(name, []).extend(_value(kind[0], v) for v in each)
        else:
            found[name] = _value(kind, value)
    return found


def _value(kind: Any, raw: int | bytes) -> Any:
    if kind in (int, bool):
        if isinstance(raw, bytes):
            raise ValueError("a number is expected where bytes stand")
        # Negative numbers are stored as 64 bits of two's complement.
        return kind(raw - 2**64 if raw >= 2**63 else raw)
    if not isinstance(raw, bytes):
        raise ValueError("bytes are expected where a number stands")
    if kind is str:
        return raw.decode()
    if kind is float:
        return struct.unpack("<f", raw)[0]
    return parse(kind, raw)


def _split(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, kind = key >> 3, key & 7
        if kind == _VARINT:
            value, at = _varint(data, at)
            yield number, value
            continue
        if kind == _LENGTH:
            size, at = _varint(data, at)
        elif kind in (_FIXED32, _FIXED64):
            size = 4 if kind == _FIXED32 else 8
        else:
            raise ValueError(f"field {number} is of an unknown kind {kind}")
        if at + size > len(data):
            raise ValueError(f"field {number} ends after the message")
        yield number, data[at : at + size]
        at += size


def _varints(data: Any) -> Iterator[int]:
    at = 0
    while at < len(data):
        value, at = _varint(data, at)
        yield value


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Reads seven bits per byte, the lowest first, as long as a byte's highest bit is set."""
    value = 0
    for place in range(_LONGEST_VARINT):
        if at >= len(data):
            raise ValueError("it was cut short")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << (7 * place)
        if not byte & 0x80:
            return value, at
    raise ValueError("a number has no end")
