"""The report as one page: no script, nothing loaded from elsewhere, readable on a phone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from html import escape
from typing import Any

from edgeverify.report.model import (
    FAIL,
    PASS,
    UNCHECKED,
    LegResult,
    Report,
    TapResult,
    worst_outcome,
)
from edgeverify.report.words import (
    audit_lines,
    case_line,
    continuation_lines,
    counts,
    invariant_cells,
    invariant_lines,
    invariants_line,
    leg_lines,
    loose_findings,
    number,
    scientific,
)

# A faulty early block fails every tap after it; the JSON report has them all.
SHOWN_TAPS = 200

STYLE = """
body { font: 16px/1.45 system-ui, sans-serif; margin: 0 auto; padding: 1rem; max-width: 70rem;
       color: #1b1b1b; background: #fff; }
h1 { font-size: 1.3rem; } h2 { font-size: 1.1rem; margin-top: 2rem; } h3 { font-size: 1rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .85rem; }
th, td { padding: .25rem .5rem; text-align: left; border-bottom: 1px solid #ddd;
         vertical-align: top; }
td.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
td.heat { text-align: right; border: 1px solid #fff; color: #000; }
.pass { background: #c8e6c9; } .fail { background: #ef9a9a; } .unchecked { background: #ffe082; }
.badge { padding: .1rem .5rem; border-radius: .3rem; color: #000; font-weight: 600; }
code { font-size: .85rem; overflow-wrap: anywhere; }
pre { overflow-x: auto; font-size: .8rem; background: #f6f6f6; padding: .5rem; }
.muted { color: #555; }
"""


def render(report: Report) -> str:
    """The page as HTML."""
    title = f"{report.outcome.upper()} {case_line(report.case)}"
    loose = [finding.message for finding in loose_findings(report)]
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>",
        f"<h1>{_badge(report.outcome)} {escape(case_line(report.case))}</h1>",
        *(f"<p>{escape(line)}</p>" for line in [*continuation_lines(report.case), *loose]),
        _legs_table(report),
        _audits(report),
    ]
    for leg in report.legs.values():
        parts += [
            f"<h2>{escape(leg.name)} {_badge(leg.outcome)}</h2>",
            *(f"<p>{escape(line)}</p>" for line in leg_lines(leg, report.findings)),
            _heat_map(leg),
            _odd_taps(leg),
        ]
    parts.append(_invariants(report))
    parts.append(_facts("Case", report.case))
    parts.append(_facts("Environment", report.environment))
    parts.append(_facts("Seconds", report.timings))
    return "\n".join(part for part in parts if part) + "\n</body></html>\n"


def _badge(outcome: str) -> str:
    return f'<span class="badge {escape(outcome)}">{escape(outcome)}</span>'


def _legs_table(report: Report) -> str:
    rows = []
    for leg in report.legs.values():
        first = "–" if leg.first_divergence is None else leg.first_divergence.tap
        worst = leg.worst or TapResult("", leg.outcome)
        rows.append(
            f"<tr><th>{escape(leg.name)}</th><td>{_badge(leg.outcome)}</td>"
            f'<td class="n">{number(worst.error_ratio)}</td>'
            f'<td class="n">{number(leg.threshold.get("rms"))}</td>'
            f'<td class="n">{number(worst.row_ratio)}</td>'
            f'<td class="n">{number(leg.threshold.get("row"))}</td>'
            f"<td><code>{escape(first)}</code></td><td>{escape(counts(leg.taps))}</td></tr>"
        )
    heads = (
        "leg",
        "outcome",
        "worst error ratio",
        "allowed",
        "its worst row",
        "allowed",
        "first diverging tap",
        "taps",
    )
    return _table(heads, rows)


def _audits(report: Report) -> str:
    rows = []
    for name, audit in report.audits.items():
        lines = "<br>".join(escape(line) for line in audit_lines(audit))
        rows.append(
            f"<tr><th>{escape(name)}</th><td>{_badge(audit.outcome)}</td><td>{lines}</td></tr>"
        )
    return _table(("audit", "outcome", "found"), rows) if rows else ""


@dataclass(frozen=True)
class _Cell:
    """The worst of one tap of one block over all steps."""

    outcome: str
    tap: TapResult


def _cells(taps: Iterable[TapResult]) -> dict[tuple[str, str], _Cell]:
    """(row, column) → cell. Rows are block numbers, or "model" for what is in no block."""
    grouped: dict[tuple[str, str], list[TapResult]] = {}
    for tap in taps:
        name = tap.tap.partition("/")[2]
        kind, _, rest = name.partition(".")
        index, _, inner = rest.partition(".")
        place = ("model", name)
        if kind in ("blocks", "kv") and index.isdigit():
            place = (index, inner if kind == "blocks" else f"kv.{inner}")
        grouped.setdefault(place, []).append(tap)
    return {
        place: _Cell(
            worst_outcome([tap.outcome for tap in found]),
            max(found, key=lambda tap: (tap.outcome == FAIL, tap.error_ratio or 0.0)),
        )
        for place, found in grouped.items()
    }


def _heat_map(leg: LegResult) -> str:
    cells = _cells(leg.taps)
    if not cells:
        return ""
    allowed = leg.threshold.get("rms")
    tables = []
    for title, in_model in (("block", False), ("", True)):
        chosen = [place for place in cells if (place[0] == "model") == in_model]
        columns = list(dict.fromkeys(column for _, column in chosen))
        rows = []
        for row in dict.fromkeys(row for row, _ in chosen):
            found = (cells.get((row, column)) for column in columns)
            rows.append(f"<tr><th>{row}</th>{''.join(_heat_cell(c, allowed) for c in found)}</tr>")
        if rows:
            tables.append(_table((title, *columns), rows))
    caption = f"Worst error ratio over all steps; allowed {number(allowed)}."
    return f"<h3>Error ratios</h3><p class='muted'>{caption}</p>" + "\n".join(tables)


def _heat_cell(cell: _Cell | None, allowed: float | None) -> str:
    if cell is None:
        return "<td></td>"
    ratio = cell.tap.error_ratio
    about = f"{cell.tap.tap}: {cell.outcome}"
    style = ""
    if cell.outcome == PASS and ratio is not None and allowed:
        # From white (no error) to the green of a pass at what is allowed.
        strength = min(1.0, ratio / allowed)
        style = f' style="background: rgba(129, 199, 132, {strength:.2f})"'
    return (
        f'<td class="heat {escape(cell.outcome)}"{style} title="{escape(about)}">'
        f"{number(ratio)}</td>"
    )


def _odd_taps(leg: LegResult) -> str:
    odd = [tap for tap in leg.taps if tap.outcome in (FAIL, UNCHECKED)]
    if not odd:
        return ""
    rows = [
        f"<tr><td><code>{escape(tap.tap)}</code></td><td>{_badge(tap.outcome)}</td>"
        f'<td class="n">{scientific(tap.error)}</td><td class="n">{scientific(tap.floor)}</td>'
        f'<td class="n">{number(tap.error_ratio)}</td><td class="n">{number(tap.row_ratio)}</td>'
        f'<td class="n">{number(tap.isolated_ratio)}</td><td>{escape(tap.reason)}</td></tr>'
        for tap in odd[:SHOWN_TAPS]
    ]
    heads = ("tap", "outcome", "error", "floor", "ratio", "row", "isolated", "why")
    more = f"<p>and {len(odd) - SHOWN_TAPS} more</p>" if len(odd) > SHOWN_TAPS else ""
    return "<h3>Taps that did not pass</h3>" + _table(heads, rows) + more


def _invariants(report: Report) -> str:
    """Invariant × implementation, then what failed in full."""
    if not report.invariants:
        return ""
    columns = list(dict.fromkeys(result.implementation for result in report.invariants))
    by_place = {(r.invariant, r.implementation): r for r in report.invariants}
    cells = invariant_cells(report.invariants)
    rows = []
    for name in dict.fromkeys(result.invariant for result in report.invariants):
        row = f"<tr><th>{escape(name)}</th>"
        for column in columns:
            result = by_place.get((name, column))
            kind = result.outcome if result and result.outcome in (PASS, FAIL, UNCHECKED) else ""
            row += f'<td class="heat {kind}">{escape(cells.get((name, column), "–"))}</td>'
        rows.append(row + "</tr>")
    odd = [result for result in report.invariants if result.outcome in (FAIL, UNCHECKED)]
    told = "".join(f"<pre>{escape(chr(10).join(invariant_lines(result)))}</pre>" for result in odd)
    line = f"<p>{escape(invariants_line(report.invariants))}</p>"
    return "<h2>Invariants</h2>" + line + _table(("cases", *columns), rows) + told


def _facts(title: str, facts: Mapping[str, Any]) -> str:
    rows = [
        f"<tr><th>{escape(str(key))}</th><td>{escape(str(value))}</td></tr>"
        for key, value in facts.items()
        if key != "steps"
    ]
    return f"<h2>{title}</h2>{_table((), rows)}" if rows else ""


def _table(heads: Iterable[str], rows: Iterable[str]) -> str:
    head = "".join(f"<th>{escape(text)}</th>" for text in heads)
    top = f"<thead><tr>{head}</tr></thead>" if head else ""
    return f'<div class="scroll"><table>{top}<tbody>{"".join(rows)}</tbody></table></div>'
