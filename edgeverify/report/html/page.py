"""The page of one report: outcome, leg by leg, and what it was made with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from edgeverify.core.results import FAIL, PASS, UNCHECKED, LegResult, Report, TapResult
from edgeverify.report.advice import hint
from edgeverify.report.answer import Answer, answer_of
from edgeverify.report.html.curves import over_positions, over_steps
from edgeverify.report.html.figures import attributions, evaluation
from edgeverify.report.html.heat import MODEL, heat_maps, place_of
from edgeverify.report.html.parts import badge, document, folded, table
from edgeverify.report.html.trend import trend
from edgeverify.report.series import EVAL, Entry, subject
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
    plural,
    scientific,
)

# A faulty early block fails every tap after it; the JSON report has them all.
SHOWN_TAPS = 200


def render(report: Report, earlier: Sequence[Entry] = ()) -> str:
    """The page as HTML.

    Args:
        report: what came of the run.
        earlier: reports of earlier runs, oldest first.
    """
    loose = [finding.message for finding in loose_findings(report)]
    parts = [
        _outcome(report),
        _answer(answer_of(report)),
        *(f"<p>{escape(line)}</p>" for line in [*continuation_lines(report.case), *loose]),
        _legs_table(report),
        trend(report.to_dict(), earlier),
    ]
    parts += [part for leg in report.legs.values() for part in _leg(leg, report)]
    parts += [_audits(report), attributions(report), _evaluated(report, earlier)]
    parts += [_goldens(report), _invariants(report)]
    facts = (
        ("Case", report.case),
        ("Environment", report.environment),
        ("Seconds", report.timings),
    )
    parts += [_facts(title, told, shown=title == "Environment") for title, told in facts]
    return document(f"{report.outcome.upper()} {case_line(report.case)}", parts)


def _outcome(report: Report) -> str:
    return (
        f'<div class="outcome {escape(report.outcome)}">'
        f'<div class="verdict">{badge(report.outcome)}</div>'
        f'<p class="where">{escape(headline(report))}</p></div>'
        f"<h1>{escape(case_line(report.case))}</h1>"
    )


def _answer(answer: Answer) -> str:
    """Cause, where and next, as on a terminal; a pass needs none of it."""
    command = f"<code>{escape(answer.command)}</code>" if answer.command else ""
    told = {
        "cause": "<br>".join(escape(line) for line in answer.cause),
        "where": "<br>".join(escape(line) for line in answer.where),
        "next": f"{escape(answer.next)} {command}".strip(),
    }
    rows = [f"<dt>{label}</dt><dd>{text}</dd>" for label, text in told.items() if text]
    return f'<dl class="next">{"".join(rows)}</dl>' if rows else ""


def headline(report: Report) -> str:
    """The outcome in one sentence: which leg, block and sublayer."""
    for kind in (FAIL, UNCHECKED):
        for leg in report.legs.values():
            if leg.outcome == kind:
                return _broken(leg) if kind == FAIL else f"{leg.name} is unchecked: {leg.reason}"
        odd = [f"the audit of {n}" for n, audit in report.audits.items() if audit.outcome == kind]
        odd += [f"{r.invariant} on {r.implementation}" for r in report.invariants
                if r.outcome == kind]  # fmt: skip
        odd += [f"the golden {golden.name}" for golden in report.goldens if golden.outcome == kind]
        if odd:
            word = "fails" if kind == FAIL else "is unchecked"
            more = f" (and {len(odd) - 1} more)" if len(odd) > 1 else ""
            return f"{odd[0]} {word}{more}"
    if not report.legs:
        return "nothing was compared"
    return f"{', '.join(report.legs)}: the same model"


def _broken(leg: LegResult) -> str:
    first = leg.first_divergence
    if first is None:
        return f"{leg.name} fails: {leg.reason}"
    named = first.isolated or (first.tap.partition("/")[2],)
    told = "; ".join(_spot(tap) for tap in named[:3])
    more = f" and {len(named) - 3} more" if len(named) > 3 else ""
    return f"{leg.name} fails in {told}{more}: error ratio {number(first.error_ratio)}"


def _spot(tap: str) -> str:
    row, column = place_of(tap)
    return column if row == MODEL else f"block {row}, {column}"


def _legs_table(report: Report) -> str:
    rows = []
    for leg in report.legs.values():
        first = "–" if leg.first_divergence is None else leg.first_divergence.tap
        worst = leg.worst or TapResult("", leg.outcome)
        rows.append(
            f"<tr><th>{escape(leg.name)}</th><td>{badge(leg.outcome)}</td>"
            f'<td class="n">{number(worst.error_ratio)}</td>'
            f'<td class="n">{number(leg.threshold.get("rms"))}</td>'
            f'<td class="n">{number(worst.row_ratio)}</td>'
            f'<td class="n">{number(leg.threshold.get("row"))}</td>'
            f"<td><code>{escape(first)}</code></td>"
            f'<td class="wide">{escape(counts(leg.taps))}</td></tr>'
        )
    heads = ("leg", "outcome", "worst error ratio", "allowed", "its worst row", "allowed",
             "first diverging tap", "taps")  # fmt: skip
    return table(heads, rows)


def _leg(leg: LegResult, report: Report) -> list[str]:
    alone = (report.case.get("thresholds") or {}).get("isolated") or leg.threshold
    return [
        f"<h2>{escape(leg.name)} {badge(leg.outcome)}</h2>",
        heat_maps(leg, alone.get("rms")),
        *(f"<p>{escape(line)}</p>" for line in leg_lines(leg, report.findings)),
        _next_steps(leg),
        over_steps(leg),
        over_positions(leg),
        _odd_taps(leg),
    ]


def _next_steps(leg: LegResult) -> str:
    """What to look at, for each tap that is faulty on its own; else for the first that fails."""
    first = leg.first_divergence
    if first is None:
        return ""
    named = first.isolated or (first.tap.partition("/")[2],)
    rows = [f"<dt><code>{escape(t)}</code></dt><dd>Look at {escape(hint(t))}.</dd>" for t in named]
    return f'<h3>What to do next</h3><dl class="next">{"".join(rows)}</dl>'


def _odd_taps(leg: LegResult) -> str:
    odd = [tap for tap in leg.taps if tap.outcome in (FAIL, UNCHECKED)]
    if not odd:
        return ""
    rows = [_odd_tap(tap, leg) for tap in odd[:SHOWN_TAPS]]
    heads = ("tap", "outcome", "error", "floor", "ratio", "row", "isolated", "why", "next")
    more = f"<p>and {len(odd) - SHOWN_TAPS} more</p>" if len(odd) > SHOWN_TAPS else ""
    return folded(
        f"Taps that did not pass: {len(odd)}", table(heads, rows) + more, shown=len(odd) <= 20
    )


def _odd_tap(tap: TapResult, leg: LegResult) -> str:
    ratios = (tap.error_ratio, tap.row_ratio, tap.isolated_ratio)
    measured = [scientific(tap.error), scientific(tap.floor), *(number(r) for r in ratios)]
    cells = "".join(f'<td class="n">{cell}</td>' for cell in measured)
    return (
        f"<tr><td><code>{escape(tap.tap)}</code></td><td>{badge(tap.outcome)}</td>{cells}"
        f'<td class="wide">{escape(tap.reason)}</td>'
        f'<td class="wide">{escape(_advice(tap, leg))}</td></tr>'
    )


def _advice(tap: TapResult, leg: LegResult) -> str:
    """What to do about one tap: of one that only inherits its error, nothing before the source."""
    if tap.outcome == UNCHECKED:
        return "make it readable, or see the reason: it is no pass"
    if tap.isolated_outcome == PASS:
        first = leg.first_divergence
        source = (first.isolated or (first.tap,))[0] if first else "the first that fails"
        return f"inherited: correct {source} first"
    return f"look at {hint(tap.tap)}"


def _audits(report: Report) -> str:
    rows = []
    for name, audit in report.audits.items():
        lines = "<br>".join(escape(line) for line in audit_lines(audit))
        rows.append(
            f"<tr><th>{escape(name)}</th><td>{badge(audit.outcome)}</td>"
            f'<td class="wide">{lines}</td></tr>'
        )
    heads = ("audit", "outcome", "found")
    return f"<h2>Audits</h2>{table(heads, rows)}" if rows else ""


def _evaluated(report: Report, earlier: Iterable[Entry]) -> str:
    """The newest evaluation of the same model among the earlier reports."""
    name = f"{subject({'case': report.case})}"
    model = name.partition(" (")[0]
    found = [
        told
        for entry in earlier
        for told in entry.cases.values()
        if (entry.kind == EVAL or "recipes" in told) and subject(told).startswith(f"{model} ")
    ]
    return evaluation(found[-1]) if found else ""


def _goldens(report: Report) -> str:
    rows = []
    for golden in report.goldens:
        moved = ", ".join(golden.moved) or "–"
        lines = "<br>".join(escape(line) for line in golden.lines)
        changes = "".join(
            f"<li><code>{escape(change.key)}</code> {escape(change.what)}"
            f" {number(change.ratio)}</li>"
            for change in golden.changes[:SHOWN_TAPS]
        )
        listed = folded(plural(len(golden.changes), "change"), f"<ul>{changes}</ul>")
        rows.append(
            f"<tr><th>{escape(golden.name)}</th><td>{badge(golden.outcome)}</td>"
            f'<td>{escape(moved)}</td><td class="wide">{lines}{listed if changes else ""}</td></tr>'
        )
    heads = ("golden", "outcome", "moved", "found")
    return f"<h2>Goldens</h2>{table(heads, rows)}" if rows else ""


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
    return "<h2>Invariants</h2>" + line + table(("cases", *columns), rows) + told


def _facts(title: str, facts: Mapping[str, Any], *, shown: bool) -> str:
    rows = [
        f"<tr><th>{escape(str(key))}</th><td>{escape(str(value))}</td></tr>"
        for key, value in facts.items()
        if key != "steps"
    ]
    return folded(title, table((), rows), shown=shown) if rows else ""
