"""The page of one report: outcome, leg by leg, and what it was made with."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from edgeverify.core.results import (
    FAIL,
    PASS,
    UNCHECKED,
    InvariantResult,
    LegResult,
    Report,
    TapResult,
)
from edgeverify.report.advice import hint
from edgeverify.report.answer import answer_of
from edgeverify.report.html.curves import over_positions, over_steps
from edgeverify.report.html.figures import attributions, evaluation
from edgeverify.report.html.heat import MODEL, heat_maps, legend, place_of
from edgeverify.report.html.parts import MARKS, rendered
from edgeverify.report.html.trend import trend
from edgeverify.report.series import EVAL, Entry, subject
from edgeverify.report.words import (
    audit_lines,
    case_line,
    continuation_lines,
    invariant_cells,
    invariant_lines,
    invariants_line,
    leg_lines,
    loose_findings,
    number,
)

# A faulty early block fails every tap after it; the JSON report has them all.
SHOWN_TAPS = 200


def render(report: Report, earlier: Sequence[Entry] = ()) -> str:
    """The page as HTML.

    Args:
        report: what came of the run.
        earlier: reports of earlier runs, oldest first.
    """
    case = case_line(report.case)
    facts = {"Case": report.case, "Environment": report.environment, "Seconds": report.timings}
    shown = {title: {k: v for k, v in of.items() if k != "steps"} for title, of in facts.items()}
    return rendered(
        "report.html.j2",
        title=f"{report.outcome.upper()} {case}",
        report=report,
        headline=headline(report),
        answer=answer_of(report),
        case=case,
        loose=[*continuation_lines(report.case), *(f.message for f in loose_findings(report))],
        legs=[_leg(leg, report) for leg in report.legs.values()],
        legend=legend(),
        most=SHOWN_TAPS,
        trend=trend(report.to_dict(), earlier),
        audits=[(name, audit.outcome, audit_lines(audit)) for name, audit in report.audits.items()],
        moved=attributions(report),
        evaluated=_evaluated(report, earlier),
        invariants=_invariants(report.invariants),
        facts_of=[(title, of) for title, of in shown.items() if of],
    )


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


def _leg(leg: LegResult, report: Report) -> dict[str, Any]:
    alone = (report.case.get("thresholds") or {}).get("isolated") or leg.threshold
    first = leg.first_divergence
    odd = [tap for tap in leg.taps if tap.outcome in (FAIL, UNCHECKED)]
    return {
        "leg": leg,
        "maps": heat_maps(leg, alone.get("rms")),
        "lines": leg_lines(leg, report.findings),
        # What to look at: each tap that is faulty on its own; else the first that fails.
        "named": (first.isolated or (first.tap.partition("/")[2],)) if first else (),
        "figures": [figure for figure in (over_steps(leg), over_positions(leg)) if figure],
        "odd": [(tap, _advice(tap, leg)) for tap in odd],
    }


def _advice(tap: TapResult, leg: LegResult) -> str:
    """What to do about one tap: of one that only inherits its error, nothing before the source."""
    if tap.outcome == UNCHECKED:
        return "make it readable, or see the reason: it is no pass"
    if tap.isolated_outcome == PASS:
        first = leg.first_divergence
        source = (first.isolated or (first.tap,))[0] if first else "the first that fails"
        return f"inherited: correct {source} first"
    return f"look at {hint(tap.tap)}"


def _evaluated(report: Report, earlier: Iterable[Entry]) -> dict[str, Any] | None:
    """The newest evaluation of the same model among the earlier reports."""
    name = f"{subject({'case': report.case})}"
    model = name.partition(" (")[0]
    found = [
        told
        for entry in earlier
        for told in entry.cases.values()
        if (entry.kind == EVAL or "recipes" in told) and subject(told).startswith(f"{model} ")
    ]
    return evaluation(found[-1]) if found else None


def _invariants(results: Sequence[InvariantResult]) -> dict[str, Any]:
    """Invariant × implementation, then what failed in full."""
    columns = list(dict.fromkeys(result.implementation for result in results))
    outcomes = {(r.invariant, r.implementation): r.outcome for r in results}
    cells = invariant_cells(results)

    def cell(place: tuple[str, str]) -> tuple[str, str]:
        outcome = outcomes.get(place, "")
        return outcome if outcome in MARKS else "", cells.get(place, "–")

    return {
        "line": invariants_line(results),
        "columns": columns,
        "rows": [
            (name, [cell((name, column)) for column in columns])
            for name in dict.fromkeys(result.invariant for result in results)
        ],
        "odd": [
            "\n".join(invariant_lines(result))
            for result in results
            if result.outcome in (FAIL, UNCHECKED)
        ],
    }
