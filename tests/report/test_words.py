from __future__ import annotations

import pytest

from edgeverify.report.words import case_line, number, plural


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (1.0449, "1.04"),
        (9.999, "10.00"),
        (71.04, "71.0"),
        (230000.0, "2.3e+05"),
        (float("inf"), "inf"),
        (float("nan"), "nan"),
        (0.0, "0.00"),
    ],
)
def test_numbers_are_short(value: float | None, text: str) -> None:
    assert number(value) == text


def test_plurals() -> None:
    assert [plural(n, "chunk") for n in (0, 1, 2)] == ["0 chunks", "1 chunk", "2 chunks"]


def test_a_case_line_leaves_out_what_is_unknown() -> None:
    assert case_line({}) == ""
    assert case_line({"model": "phi2", "mask_as_input": True}) == "phi2 · mask as input"


def test_a_file_made_elsewhere_is_named_first() -> None:
    assert case_line({"file": "a/b.tflite", "model": "phi2"}) == "a/b.tflite · phi2"
