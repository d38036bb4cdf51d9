"""The wire format, against the bytes of https://protobuf.dev/programming-guides/encoding."""

from __future__ import annotations

import pytest

from edgeverify.litert.bundle.protobuf import Message, parse

INNER = Message({1: ("a", int)})
ALL = Message(
    {
        1: ("number", int),
        2: ("text", str),
        3: ("inner", INNER),
        4: ("many", [int]),
        5: ("each", [INNER]),
        6: ("flag", bool),
        7: ("real", float),
    }
)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ("", {}),
        ("08 96 01", {"number": 150}),
        ("08 ff ff ff ff ff ff ff ff ff 01", {"number": -1}),
        ("12 07 74 65 73 74 69 6e 67", {"text": "testing"}),
        ("1a 03 08 96 01", {"inner": {"a": 150}}),
        ("22 06 03 8e 02 9e a7 05", {"many": [3, 270, 86942]}),
        ("20 03 20 04", {"many": [3, 4]}),
        ("2a 02 08 01 2a 00", {"each": [{"a": 1}, {}]}),
        ("30 01", {"flag": True}),
        ("3d 00 00 c0 3f", {"real": 1.5}),
        ("08 01 08 02", {"number": 2}),
        ("7a 02 00 00 78 05", {"field 15": 3}),
        ("79 00 00 00 00 00 00 00 00", {"field 15": 8}),
    ],
)
def test_fields_are_read(data: str, expected: dict[str, object]) -> None:
    assert parse(ALL, bytes.fromhex(data)) == expected


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ("08", "it was cut short"),
        ("08 ff ff ff ff ff ff ff ff ff ff 01", "a number has no end"),
        ("12 07 74", "field 2 ends after the message"),
        ("1a 03 08 96 ff", "it was cut short"),
        ("0b", "field 1 is of an unknown kind 3"),
        ("0a 01 00", "a number is expected where bytes stand"),
        ("10 01", "bytes are expected where a number stands"),
        ("12 01 ff", "utf-8"),
    ],
)
def test_other_bytes_are_refused(data: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse(ALL, bytes.fromhex(data))
