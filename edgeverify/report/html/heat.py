"""The heat map: blocks × taps, each cell coloured by how far its ratio is past what is allowed."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from edgeverify.core.results import FAIL, PASS, UNCHECKED, LegResult, TapResult, worst_outcome
from edgeverify.report.html.parts import MARKS
from edgeverify.report.words import number

MODEL = "model"
# Decades of ratio over allowed; a real fault has tens to hundreds of thousands, so that a linear
# scale would show one colour.
SCALE = ((1.0, "#c8e6c9"), (3.0, "#ffe0b2"), (10.0, "#ffb74d"), (100.0, "#f4743b"),
         (1000.0, "#e53935"), (math.inf, "#ad1457"))  # fmt: skip
UNMEASURED = "#ffe082"


@dataclass(frozen=True)
class Cell:
    """One tap of one block over all steps, of one of the two runs.

    Attributes:
        outcome: the worst.
        ratio: the largest error ratio, of those that failed if any did.
        tap: where it was seen, with its step.
    """

    outcome: str
    ratio: float | None
    tap: str


def place_of(tap: str) -> tuple[str, str]:
    """``prefill.0/blocks.3.attn.k`` → ("3", "attn.k"); what is in no block is of ("model", …)."""
    name = tap.partition("/")[2] or tap
    kind, _, rest = name.partition(".")
    index, _, inner = rest.partition(".")
    if kind in ("blocks", "kv") and index.isdigit():
        return index, inner if kind == "blocks" else f"kv.{inner}"
    return MODEL, name


def cells(taps: Iterable[TapResult], *, isolated: bool) -> dict[tuple[str, str], Cell]:
    """(row, column) → cell, of the block-by-block run or of the run as a whole."""
    grouped: dict[tuple[str, str], list[Cell]] = {}
    for tap in taps:
        if isolated and tap.isolated_outcome is None:
            continue
        ratio = tap.isolated_ratio if isolated else tap.error_ratio
        outcome = tap.isolated_outcome or UNCHECKED if isolated else tap.outcome
        grouped.setdefault(place_of(tap.tap), []).append(Cell(outcome, ratio, tap.tap))
    return {
        place: Cell(
            worst_outcome([cell.outcome for cell in found]),
            (most := max(found, key=lambda c: (c.outcome == FAIL, c.ratio or 0.0))).ratio,
            most.tap,
        )
        for place, found in grouped.items()
    }


def colour(ratio: float | None, allowed: float | None) -> str:
    """Of the log scale; a ratio that is not there, or NaN, is as good as unmeasured."""
    if ratio is None or not allowed or math.isnan(ratio):
        return UNMEASURED
    return next(shade for limit, shade in SCALE if ratio / allowed <= limit)


def heat_maps(leg: LegResult, allowed_alone: float | None) -> list[dict[str, Any]]:
    """Both maps of a leg, for the template: where the fault is, and what became of it.

    Args:
        leg: the leg.
        allowed_alone: the rms ratio that the block-by-block run is allowed.
    """
    first = leg.first_divergence
    sources = {place_of(tap) for tap in first.isolated} if first else set()
    whole = cells(leg.taps, isolated=False)
    alone = cells(leg.taps, isolated=True)
    maps = []
    if alone:
        text = (
            "Each block fed with the right input, so that a faulty block shows alone. "
            f"Allowed {number(allowed_alone)}."
        )
        tables = _tables(alone, allowed_alone, sources)
        maps.append({"title": "Where it is", "text": text, "tables": tables})
    if whole:
        allowed = leg.threshold.get("rms")
        text = (
            "The run as a whole: a fault is handed on to all blocks after it. "
            f"Allowed {number(allowed)}."
        )
        title = "What comes of it" if alone else "Error ratios"
        tables = _tables(whole, allowed, set() if alone else sources)
        maps.append({"title": title, "text": text, "tables": tables})
    return maps


def _tables(
    found: dict[tuple[str, str], Cell], allowed: float | None, sources: set[tuple[str, str]]
) -> list[dict[str, Any]]:
    """The blocks, then what is in no block."""
    tables = []
    for corner, in_model in (("block", False), ("", True)):
        chosen = [place for place in found if (place[0] == MODEL) == in_model]
        columns = list(dict.fromkeys(column for _, column in chosen))
        rows = [
            (
                row,
                any(place[0] == row for place in sources),
                [_shown(found.get((row, column)), allowed, (row, column) in sources)
                 for column in columns],
            )
            for row in dict.fromkeys(row for row, _ in chosen)
        ]  # fmt: skip
        if rows:
            tables.append({"corner": corner, "columns": columns, "rows": rows})
    return tables


def _shown(cell: Cell | None, allowed: float | None, source: bool) -> dict[str, str] | None:
    if cell is None:
        return None
    mark = "" if cell.outcome == PASS else f"{MARKS.get(cell.outcome, '')} "
    shade = UNMEASURED if cell.outcome == UNCHECKED else colour(cell.ratio, allowed)
    if cell.outcome == FAIL and cell.ratio is None:
        shade = SCALE[-1][1]  # missing, misshapen or not finite: further off than any ratio
    if cell.outcome == PASS:
        shade = SCALE[0][1]  # few rows are allowed more than the leg's limit: the verdict colours
    # A worst row alone may fail a tap whose rms is within what is allowed.
    if cell.outcome == FAIL and shade == SCALE[0][1]:
        shade = SCALE[1][1]
    return {
        "kind": cell.outcome + (" source" if source else ""),
        "style": _style(shade),
        "title": f"{cell.tap}: {cell.outcome}",
        "text": mark + number(cell.ratio),
    }


def _style(shade: str) -> str:
    ink = "; color: #fff" if shade in (SCALE[-1][1], SCALE[-2][1]) else ""
    return f"background: {shade}{ink}"


def legend() -> list[tuple[str, str]]:
    """What each colour and mark says, and its style."""
    names = ("within what is allowed", "up to 3 times that", "10", "100", "1000", "more")
    shades = [(name, _style(shade)) for name, (_, shade) in zip(names, SCALE, strict=True)]
    marks = [("? unchecked", _style(UNMEASURED)), ("✗ fails", "")]
    return [*shades, *marks, ("framed: faulty on its own", "")]
