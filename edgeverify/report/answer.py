"""The answer first: outcome, cause, where, what to do next, then a line for each part.

It reads results and never judges. The terminal, the page, JUnit, GitHub's summary and pytest show
it; what it leaves out is shown by ``-v``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from edgeverify.core.results import (
    FAIL,
    PASS,
    UNCHECKED,
    Finding,
    LegResult,
    Report,
    TapResult,
    worst_outcome,
)
from edgeverify.report.answer_parts import Part, compares, parts_of
from edgeverify.report.cause import CODE, OPERATOR, Cause
from edgeverify.report.causes import named_causes
from edgeverify.report.next_step import Advice, advice
from edgeverify.report.places import blocks_of, compact
from edgeverify.report.words import case_facts, left_out, listed, number

MOST_CAUSES, MOST_OPEN = 3, 2
SEE = ": see -v"
UNEXPLAINED = ".unexplained"
# Relative errors that rounding to a narrow format makes of values that are otherwise right: the
# unit of bfloat16 is 2^-8, that of float16 2^-11; rms over rows is a quarter to all of it, and a
# sum of rounded products may reach twice.
SIZES = (
    (0.3, math.inf, "as large as the values themselves"),
    (2.0**-10, 2.0**-7, "the size of rounding to bfloat16"),
    (2.0**-13, 2.0**-10, "the size of rounding to float16"),
    (0.0, 2.0**-17, "near float32's own rounding"),
)


@dataclass(frozen=True)
class Answer:
    """What a person reads first of a report.

    Attributes:
        outcome: of the report.
        case: what was checked, in one line.
        named: whether a cause is named.
        cause: lines; the first of each cause is what was found and what is right.
        where: lines: leg, blocks and taps, ratio beside what is allowed.
        next: one thing to do.
        command: one command, or "".
        parts: audits, legs, goldens and invariants, in the report's order.
        said: what the models say next, where there was a tokenizer.
    """

    outcome: str
    case: str
    named: bool = False
    cause: tuple[str, ...] = ()
    where: tuple[str, ...] = ()
    next: str = ""
    command: str = ""
    parts: tuple[Part, ...] = ()
    said: tuple[str, ...] = field(default=())

    def to_dict(self) -> dict[str, Any]:
        """As it stands in the JSON report."""
        return asdict(self)


def answer_of(report: Report, only: str = "") -> Answer:
    """Puts a report's results in the order in which a person asks for them.

    Args:
        report: what came of the run.
        only: a leg or an audit, whose own causes alone are told; all if "".
    """
    causes = named_causes(report)
    if only:
        leg = report.legs.get(only)
        of_audit = f"{only} audit"
        causes = [
            cause
            for cause in causes
            if (leg is not None and cause.leg == only)
            or (leg is None and any(seen.startswith(of_audit) for seen in cause.seen))
        ]
        audits = {} if leg is not None else {only: report.audits[only]}
        legs = {} if leg is None else {only: leg}
        report = replace(report, legs=legs, audits=audits, goldens=(), invariants=())
    parts = tuple(parts_of(report))
    case = case_facts(report.case)
    outcome = worst_outcome([part.outcome for part in parts]) if only else report.outcome
    if outcome == PASS:
        return Answer(PASS, case, parts=parts, said=_said(report))
    told: Advice = advice(report, causes)
    if causes:
        cause = (*_cause_lines(causes), *_left_open(report, causes))
    elif outcome == FAIL:
        cause = _not_named(report)
    else:
        cause = _not_checked(report)
    where = _where(report, causes)
    return Answer(outcome, case, bool(causes), cause, where, told.text, told.command, parts)


def _said(report: Report) -> tuple[str, ...]:
    """What all continue with; where they differ, the report is no pass or it is in ``-v``."""
    said = report.case.get("continuation") or {}
    texts = set(said.values())
    return (f"all continue with {texts.pop()!r}",) if len(said) > 1 and len(texts) == 1 else ()


def _cause_lines(causes: Sequence[Cause]) -> tuple[str, ...]:
    """A line for each cause; of a single one, who names it and what else there is to know."""
    if len(causes) == 1:
        told = causes[0].text, causes[0].detail, _witnesses(causes[0])
        return tuple(line for line in told if line)
    lines = [f"{cause.text} · {' and '.join(_seen(cause))}" for cause in causes[:MOST_CAUSES]]
    return (*lines, *left_out(len(causes), MOST_CAUSES, SEE))


def _witnesses(cause: Cause) -> str:
    """``found by config audit (ModelConfig, file) and diagnosis``."""
    # Its taps are told as the place.
    seen = [one if "audit" in one else one.partition(" (")[0] for one in _seen(cause)]
    if cause.kind == CODE and len(seen) == 1:
        return "named by the diagnosis: repaired, these taps are within float32 noise"
    if cause.kind == OPERATOR:
        return f"{', '.join(seen)}, each computed in float64"
    if len(seen) > 1:
        return f"found by {' and '.join(seen)}"
    return f"found only by the {seen[0].partition(' (')[0]}"


def _seen(cause: Cause) -> tuple[str, ...]:
    return cause.places if cause.kind == OPERATOR else cause.seen


def _left_open(report: Report, causes: Sequence[Cause]) -> list[str]:
    """What the named causes do not say: taps that none explains, and legs that none is of."""
    told = []
    unexplained = [f for f in report.findings if f.id.endswith(UNEXPLAINED)]
    for finding in unexplained:
        if (leg := report.legs.get(finding.leg)) is not None:
            where = compact(finding.taps, _blocks(leg))
            none = _in_vain(finding.tried, finding.stopped)
            told.append(f"not named: {where}: {none}" if finding.taps else finding.message)
    charged = {cause.leg for cause in causes} | {finding.leg for finding in unexplained}
    told += [f"not named: what is wrong in {leg.name}"
             for leg in _failed(report) if leg.name not in charged]  # fmt: skip
    return listed(told, MOST_OPEN)


def _in_vain(tried: int, stopped: float | None) -> str:
    """What a search that named nothing has tried, and whether it was broken off."""
    vain = f"none of {tried} known faults explains it"
    if stopped is None:
        return vain
    broken_off = f"the search stopped after {stopped:.0f} s"
    return f"{vain}; {broken_off}" if tried else broken_off


def _blocks(leg: LegResult) -> set[int]:
    return blocks_of(tap.tap.partition("/")[2] for tap in leg.taps)


def _not_named(report: Report) -> tuple[str, ...]:
    """What can be said of a failure of which no cause is known."""
    for golden in report.goldens:
        if golden.outcome == FAIL and not _failed(report):
            # The last line is what to do.
            return (f"{golden.name}: {golden.lines[0]}", *golden.lines[1:-1][:1])
    for result in report.invariants:
        if result.outcome == FAIL and not _failed(report):
            broken = f"{result.invariant} does not hold on {result.implementation}: {result.reason}"
            return (broken, f"broken contract: {result.contract}")
    leg = next(iter(_failed(report)), None)
    if leg is None:
        return ("not named",)
    unexplained = [f for f in report.findings
                   if f.leg == leg.name and f.id.endswith(UNEXPLAINED)]  # fmt: skip
    first = leg.first_divergence
    tap = None if first is None else _tap(leg, first.tap)
    if tap is None:
        return (f"not named: {leg.reason}" if leg.reason else "not named",)
    tried = max((f.tried for f in unexplained), default=0)
    stopped = max((f.stopped for f in unexplained if f.stopped is not None), default=None)
    text = f"not named: {_in_vain(tried, stopped)}" if tried or stopped is not None else "not named"
    lines = [text] if tried or tap.error_ratio is not None else [f"not named: {tap.reason}"]
    shape = [*_shapes(unexplained, tap), *_size(tap)]
    return (*lines, f"the error: {', '.join(shape)}") if shape else tuple(lines)


def _shapes(unexplained: Iterable[Finding], tap: TapResult) -> list[str]:
    told = dict.fromkeys(shape for finding in unexplained for shape in finding.shape)
    if not told and "position 0 agrees" in tap.reason:
        return ["position 0 agrees"]
    return list(told)[:2]


def _size(tap: TapResult) -> list[str]:
    """How large the error is, and which kind of fault is as large."""
    if tap.error is None or not math.isfinite(tap.error):
        return []
    alike = next((text for low, high, text in SIZES if low <= tap.error < high), "")
    return [f"relative error {tap.error:.2g}" + (f", {alike}" if alike else "")]


def _not_checked(report: Report) -> tuple[str, ...]:
    """The reasons why something could not be checked, each once."""
    reasons: dict[str, None] = {}
    for leg in report.legs.values():
        if leg.outcome == UNCHECKED:
            odd = [tap.reason for tap in leg.taps if tap.outcome == UNCHECKED and tap.reason]
            reasons |= dict.fromkeys(_plain(reason) for reason in odd or [leg.reason])
    for audit in report.audits.values():
        reasons |= dict.fromkeys(
            _plain(check.reason or check.item) for check in audit.odd if check.outcome == UNCHECKED
        )
    reasons |= dict.fromkeys(
        f"{result.invariant} on {result.implementation}: {result.reason}"
        for result in report.invariants
        if result.outcome == UNCHECKED
    )
    reasons |= {golden.lines[0]: None for golden in report.goldens if golden.outcome == UNCHECKED}
    told = [reason for reason in reasons if reason] or ["nothing was compared"]
    some = any(part.outcome == PASS for part in parts_of(report))
    return (
        *(["no fault was found, but not everything could be checked"] if some else []),
        told[0] if some else f"not checked: {told[0]}",
        *told[1:MOST_CAUSES],
        *left_out(len(told), MOST_CAUSES, SEE),
    )


def _plain(reason: str) -> str:
    """A reason without the words that every tap of it has."""
    return reason.removeprefix("with its block fed by the oracle: ")


def _failed(report: Report) -> list[LegResult]:
    return [leg for leg in report.legs.values() if leg.outcome == FAIL]


def _tap(leg: LegResult, name: str) -> TapResult | None:
    return next((tap for tap in leg.taps if tap.tap == name), None)


def _where(report: Report, causes: Sequence[Cause]) -> tuple[str, ...]:
    lines: list[str] = []
    for leg in _failed(report):
        lines += _where_of(leg, report)
    if not lines:
        lines += [line for line in [_where_audited(report, causes)] if line]
    if not lines and report.outcome == UNCHECKED:
        lines += _where_unchecked(report)
    for golden in report.goldens:
        if golden.outcome == FAIL and golden.changes and not lines:
            first, more = golden.changes[0], len(golden.changes) - 1
            lines.append(f"{first.key}: {first.what}" + (f", and {more} more" if more else ""))
    for result in report.invariants:
        if result.outcome == FAIL and not lines:
            given = ", ".join(f"{name}={value!r}" for name, value in result.arguments.items())
            lines.append(f"shortest case found: {given} (seed {result.seed})")
    return tuple(lines)


def _where_of(leg: LegResult, report: Report) -> list[str]:
    """Leg, blocks and taps; then the first tap with its ratio."""
    first = leg.first_divergence
    title = f"{leg.name} ({compares(leg.name, report)})"
    if first is None:
        return [f"{title}: {leg.reason}" if leg.reason else title]
    every = _blocks(leg)
    named = first.isolated or (first.tap.partition("/")[2],)
    lines = [f"{title}: {compact(named, every)}"]
    tap = _tap(leg, first.tap)
    if tap is not None and tap.error_ratio is None:
        return [*lines, f"first at {first.tap}: {tap.reason}"]
    ratio = f"{number(first.error_ratio)} times float32 noise"
    allowed = f"allowed {number(leg.threshold.get('rms'))}"
    return [*lines, f"first at {first.tap}: error {ratio} ({allowed})"]


def _where_audited(report: Report, causes: Sequence[Cause]) -> str:
    """Of what an audit alone has seen."""
    if all(audit.outcome != FAIL for audit in report.audits.values()):
        return ""
    holders = list(dict.fromkeys(name for cause in causes for name in cause.holders))
    places = list(dict.fromkeys(place for cause in causes for place in cause.places))
    told = ", ".join(places)
    if holders:
        more = f" and {len(holders) - 1} more" if len(holders) > 1 else ""
        told += f", in {holders[0]}{more}"
    alone = "the outputs agree" if report.legs else ""
    return "; ".join(text for text in (told, alone) if text)


def _where_unchecked(report: Report) -> list[str]:
    lines = []
    for leg in report.legs.values():
        odd = [tap.tap.partition("/")[2] for tap in leg.taps if tap.outcome == UNCHECKED]
        if odd:
            told = compact(dict.fromkeys(odd), _blocks(leg))
            lines.append(f"{leg.name} ({compares(leg.name, report)}): {told}")
    if lines:
        return lines
    names = [part.name for part in parts_of(report) if part.outcome == UNCHECKED]
    whole = len(names) == len(list(parts_of(report))) > 1
    return ["everything" if whole else ", ".join(dict.fromkeys(names))] if names else []
