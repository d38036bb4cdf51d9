"""Audits the config: compares HF's config with the re-authored model and the converted file.

Values are compared exactly. Two fields come from a formula, ``query scale`` and ``embedding scale``
(an inverse root and a root). ``d ** -0.5`` and ``1 / sqrt(d)`` are both correct and differ by one
unit in the last place of a float64 (d = 40), so these two fields may differ by one such unit. A
``.tflite`` stores float32, so its values are compared with the expected value rounded to float32;
there the two fields may again differ by one unit.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from edgeverify.audits.model import Readings
from edgeverify.audits.of_hf_config import NONE
from edgeverify.core.results import (
    CONFIG,
    FAIL,
    NOT_APPLICABLE,
    PASS,
    UNCHECKED,
    AuditResult,
    Check,
)

FORMULAS = frozenset({"query scale", "embedding scale"})
FILE = "file"
BUILT = ("module", FILE)
_BLOCK = re.compile(r"^blocks\.(\d+)\.(.*)$")
_Verdict = tuple[str, str, str, str]  # outcome, expected, found, reason


def audit_config(
    declared: Readings, found: Sequence[Readings], *, rows: int | None = None
) -> AuditResult:
    """Compares the values that the HF config declares with every other reading.

    Args:
        declared: readings of the HF config.
        found: readings of the ``ModelConfig``, the module and the file.
        rows: rows of the masks that were read; a window of at least that length is not visible in
            them.
    """
    checks: list[Check] = []
    for field, keys in _fields(declared).items():
        before = len(checks)
        for reading in found:
            groups: dict[_Verdict, list[str]] = {}
            for key in keys:
                elsewhere = any(o.where in BUILT and key in o.values for o in found)
                verdict = _verdict(field, key, declared, reading, elsewhere, rows)
                if verdict is not None:
                    groups.setdefault(verdict, []).append(key)
            checks += _grouped(field, reading.where, groups, len(keys))
        if len(checks) == before and any(declared.values.get(key, NONE) != NONE for key in keys):
            checks.append(Check(field, "", UNCHECKED, reason="nothing that was built shows it"))
    return AuditResult(CONFIG, tuple(checks))


def audit_mask_inputs(declared: Readings, kinds: Sequence[str]) -> AuditResult:
    """Checks, if masks are inputs, that layers with a window get another mask than the others.

    Args:
        declared: readings of the HF config.
        kinds: the port's ``mask_kinds``.
    """
    windows = [value for key, value in declared.values.items() if key.endswith(".window")]
    if all(window == NONE for window in windows):
        check = Check("window", "mask inputs", NOT_APPLICABLE, NONE, NONE)
    else:
        needed = ["local"] if NONE not in windows else ["global", "local"]
        right = set(needed) <= set(kinds)
        reason = "" if right else "one mask for all layers drops the window of the local ones"
        outcome = PASS if right else FAIL
        masks = ", ".join(needed), ", ".join(kinds)
        check = Check("window", "mask inputs", outcome, *masks, reason=reason)
    return AuditResult(CONFIG, (check,))


def _fields(declared: Readings) -> dict[str, list[str]]:
    """Returns field → its key, or its keys block by block.

    Blocks beyond the declared ones are left to the field ``layers``.
    """
    fields: dict[str, list[str]] = {}
    for key in [*declared.values, *declared.unread]:
        match = _BLOCK.match(key)
        fields.setdefault(match.group(2) if match else key, []).append(key)
    return fields


def _verdict(
    field: str,
    key: str,
    declared: Readings,
    reading: Readings,
    elsewhere: bool,
    rows: int | None,
) -> _Verdict | None:
    """Judges one key of one reading; returns None if that place has no value to compare."""
    if key in reading.unread and key not in reading.values:
        if elsewhere:
            return None
        return UNCHECKED, _text(declared.values.get(key, "")), "", reading.unread[key]
    if key not in reading.values:
        return None
    found = reading.values[key]
    if key not in declared.values:
        return UNCHECKED, "", _text(found), declared.unread[key]
    expected = declared.values[key]
    if field == "rotary base" and reading.where == FILE and _scaled(declared):
        reason = "its table is of scaled angles, from which no base is read"
        return UNCHECKED, _text(expected), _text(found), reason
    if field == "window":
        shown = _shown(declared, reading, rows)
        expected, found = _within(expected, shown), _within(found, shown)
    if _equal(field, expected, found, reading.where == FILE):
        outcome = NOT_APPLICABLE if expected == NONE else PASS
        return outcome, _text(expected), _text(found), ""
    return FAIL, _text(expected), _text(found), ""


def _scaled(declared: Readings) -> bool:
    return declared.values.get("rotary scaling", "default") != "default"


def _shown(declared: Readings, reading: Readings, rows: int | None) -> int | None:
    """Returns how many positions there are; a window of at least that many hides none of them."""
    if reading.where in BUILT and rows is not None:
        return rows
    length = declared.values.get("max length")
    return length if isinstance(length, int) else None


def _within(window: Any, shown: int | None) -> Any:
    hides_none = isinstance(window, int) and shown is not None and window >= shown
    return NONE if hides_none else window


def _equal(field: str, expected: Any, found: Any, single: bool) -> bool:
    if isinstance(expected, str) or isinstance(found, str):
        return bool(expected == found)
    if not isinstance(expected, float) and not isinstance(found, float):
        return bool(expected == found)
    kind = np.float32 if single else np.float64
    left, right = kind(expected), kind(found)
    if left == right:
        return True
    return field in FORMULAS and bool(np.nextafter(left, right) == right)


def _grouped(
    field: str, where: str, groups: dict[_Verdict, list[str]], total: int
) -> Iterator[Check]:
    """Yields one check for each verdict, with its blocks if only some blocks have it."""
    for (outcome, expected, found, reason), keys in groups.items():
        numbers = [match.group(1) for key in keys if (match := _BLOCK.match(key))]
        place = where
        if numbers and len(numbers) < total:
            noun = "block" if len(numbers) == 1 else "blocks"
            place = f"{where}, {noun} {', '.join(numbers)}"
        yield Check(field, place, outcome, expected, found, reason)


def _text(value: Any) -> str:
    """Prints a float in full, because 1e-05 and 1.1e-05 must not look alike."""
    return repr(float(value)) if isinstance(value, (float, np.floating)) else str(value)
