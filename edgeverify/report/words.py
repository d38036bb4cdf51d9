"""The report's own words: one place that says numbers, cases, legs and taps in text.

Nothing here decides; it reads what ``compare`` decided. Text is plain, so that the terminal, JUnit,
HTML and pytest say the same thing.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from edgeverify.core.results import (
    FAIL,
    NOT_APPLICABLE,
    PASS,
    UNCHECKED,
    Divergence,
    Finding,
    GoldenResult,
    InvariantResult,
    LegResult,
    Report,
    TapResult,
)

if TYPE_CHECKING:
    from edgeverify.core.results import AuditResult

AUDIT = "audit."
# More would push the first one, which matters most, off a terminal.
LISTED = 6


def number(value: float | None) -> str:
    """A ratio with three significant digits at most: 1.08, 71.0, 2.3e+05, inf; "–" for None."""
    if value is None:
        return "–"
    if not math.isfinite(value):
        return str(value)
    if abs(value) < 10:
        return f"{value:.2f}"
    if abs(value) < 1000:
        return f"{value:.1f}"
    return f"{value:.1e}"


def scientific(value: float | None) -> str:
    """An error or a floor: 4.1e-07; "–" for None."""
    return "–" if value is None else f"{value:.1e}"


def case_line(case: Mapping[str, Any]) -> str:
    """One line: ``tinyllama tiny · 69 prompt tokens in 3 chunks + 8 decode steps · KV default``."""
    parts = [" ".join(str(case[key]) for key in ("model", "size") if case.get(key))]
    if case.get("file"):
        parts.insert(0, str(case["file"]))
    if case.get("checkpoint"):
        parts.append(str(case["checkpoint"]))
    steps = case.get("steps") or ()
    chunks = [step for step in steps if step["signature"] != "decode"]
    if chunks:
        tokens = sum(int(step["tokens"]) for step in chunks)
        decodes = len(steps) - len(chunks)
        parts.append(
            f"{plural(tokens, 'prompt token')} in {plural(len(chunks), 'chunk')}"
            f" + {plural(decodes, 'decode step')}"
        )
    if case.get("kv_layout"):
        parts.append(f"KV {case['kv_layout']}")
    if case.get("mask_as_input"):
        parts.append("mask as input")
    if case.get("kernel"):
        parts.append(str(case["kernel"]))
    return " · ".join(part for part in parts if part)


def case_facts(case: Mapping[str, Any]) -> str:
    """The case in short: what it is of, and what is not as usual; ``case_line`` has all of it."""
    usual = {"kv_layout": "default", "kernel": "xnnpack"}
    shown = {key: value for key, value in case.items() if usual.get(key) != value}
    return re.sub(r" in \d+ chunks?", "", case_line(shown))


def continuation_lines(case: Mapping[str, Any]) -> list[str]:
    """What each implementation says next, where there was a tokenizer: one line if all agree."""
    said: Mapping[str, str] = case.get("continuation") or {}
    if len(said) > 1 and len(set(said.values())) == 1:
        return [f"all continue with {next(iter(said.values()))!r}"]
    return [f"{name} continues with {text!r}" for name, text in said.items()]


def plural(count: int, noun: str) -> str:
    """``1 chunk``, ``3 chunks``."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def listed(texts: Sequence[str], most: int = LISTED, of: str = "") -> list[str]:
    """The first few, then ``and 3 more`` where there are more, with ``of`` right after it."""
    return [*texts[:most], *left_out(len(texts), most, of)]


def left_out(count: int, most: int, of: str = "") -> list[str]:
    """``and 3 more`` where ``most`` are listed of ``count``; nothing where that is all."""
    return [f"and {count - most} more{of}"] if count > most else []


def counts(taps: Iterable[TapResult]) -> str:
    """``412 taps compared: 410 pass, 2 fail, 0 unchecked``."""
    found = Counter(tap.outcome for tap in taps)
    each = ", ".join(f"{found[outcome]} {outcome}" for outcome in (PASS, FAIL, UNCHECKED))
    return f"{plural(found.total(), 'tap')} compared: {each}"


def worst_line(leg: LegResult) -> str:
    """The worst ratios of a leg beside what is allowed, and where they were seen."""
    if leg.worst is None:
        return ""
    text = (
        f"worst {number(leg.worst.error_ratio)} (allowed {number(leg.threshold.get('rms'))})"
        f" at {leg.worst.tap}"
    )
    rows = [tap for tap in leg.taps if tap.row_ratio is not None and not math.isnan(tap.row_ratio)]
    row = max(rows, key=lambda tap: tap.row_ratio or 0.0, default=leg.worst)
    if row.row_ratio is None:
        return text
    where = "" if row.tap == leg.worst.tap else f" at {row.tap}"
    return (
        f"{text}, worst row {number(row.row_ratio)}"
        f" (allowed {number(leg.threshold.get('row'))}){where}"
    )


def divergence_line(leg: LegResult, divergence: Divergence, *, brief: bool = False) -> str:
    """The first tap that fails, with its ratios beside what is allowed.

    Args:
        leg: the leg that it belongs to.
        divergence: the leg's first divergence.
        brief: only the tap and its ratio, where a finding tells the rest.
    """
    text = f"first diverging tap {divergence.tap}: error ratio {number(divergence.error_ratio)}"
    if brief:
        return text
    text += f" (allowed {number(leg.threshold.get('rms'))})"
    tap = next((tap for tap in leg.taps if tap.tap == divergence.tap), None)
    if tap is None or tap.row_ratio is None:
        return text
    text += f", worst row {number(tap.row_ratio)} (allowed {number(leg.threshold.get('row'))})"
    return text if tap.worst_row is None else f"{text} at position {tap.worst_row}"


def tap_line(tap: TapResult, threshold: Mapping[str, float]) -> str:
    """One tap that is no pass, and why; its ratios where it gives no reason of its own."""
    reason = tap.reason
    if not reason and tap.error_ratio is not None:
        reason = (
            f"error ratio {number(tap.error_ratio)} (allowed {number(threshold.get('rms'))}),"
            f" worst row {number(tap.row_ratio)} (allowed {number(threshold.get('row'))})"
        )
    return f"{tap.tap}: {tap.outcome}" + (f", {reason}" if reason else "")


def leg_lines(leg: LegResult, findings: Iterable[Finding] = ()) -> list[str]:
    """What a person wants to know of one leg, the most important line first.

    Args:
        leg: the leg.
        findings: the report's findings; those of other legs are left out.
    """
    own = [f for f in findings if f.leg == leg.name and not f.id.startswith(AUDIT)]
    lines: list[str] = []
    if (first := leg.first_divergence) is not None:
        told = any(finding.tap == first.tap for finding in own)
        lines.append(divergence_line(leg, first, brief=told))
        if first.isolated:
            lines.append(f"faulty on its own: {', '.join(first.isolated)}")
    lines += dict.fromkeys(
        text for text in (leg.reason, *(finding.message for finding in own)) if text
    )
    for outcome in (FAIL, UNCHECKED):
        if outcome == FAIL and leg.first_divergence is not None:
            continue
        odd = [tap for tap in leg.taps if tap.outcome == outcome]
        lines += listed([tap_line(tap, leg.threshold) for tap in odd], of=f" {outcome}")
    lines += leg.notes
    worst = worst_line(leg)
    moved = [attribution_line(leg.attribution)] if leg.attribution else []
    if leg.outcome == PASS and not lines and worst:
        return [f"{worst} · {plural(len(leg.taps), 'tap')}", *moved]
    return [*lines, *moved, *([worst] if worst else []), counts(leg.taps)]


def attribution_line(moved: Mapping[str, Any]) -> str:
    """Who moved the logits of a quantized file, and how far."""
    parts = [f"{who} {scientific(moved[who])}" for who in ("weights", "activations", "kernels")]
    divergence, control = moved["kl"], moved.get("control")
    text = (
        f"logits moved by {', '.join(parts)} · KL {scientific(divergence['file'])}, "
        f"by weights alone {scientific(divergence['weights'])}"
    )
    if control:
        text += (
            f" · {plural(control['taps'], 'tap')} as the control predicts, worst "
            f"{number(control['worst'])}"
        )
    return text


def invariants_line(results: Sequence[InvariantResult]) -> str:
    """``17 invariants on 4 implementations, 512 cases: 62 pass, 0 fail, 0 unchecked``."""
    found = Counter(result.outcome for result in results)
    each = ", ".join(f"{found[outcome]} {outcome}" for outcome in (PASS, FAIL, UNCHECKED))
    names = len({result.invariant for result in results})
    implementations = len({result.implementation for result in results})
    cases = sum(result.examples for result in results)
    return (
        f"{plural(names, 'invariant')} on {plural(implementations, 'implementation')},"
        f" {plural(cases, 'case')}: {each}"
    )


def invariant_cells(results: Sequence[InvariantResult]) -> dict[tuple[str, str], str]:
    """(invariant, implementation) → how many cases passed, or the outcome."""
    return {
        (result.invariant, result.implementation): str(result.examples)
        if result.outcome == PASS
        else result.outcome
        for result in results
    }


def invariant_lines(result: InvariantResult) -> list[str]:
    """An invariant that does not hold, or was not asked: what, where, the shortest sequence."""
    place = f"{result.invariant} on {result.implementation}"
    if result.outcome == NOT_APPLICABLE:
        return [f"{place}: not applicable: {result.reason}"]
    if result.outcome != FAIL:
        return [f"{place}: {result.outcome}: {result.reason}"]
    sequence = ", ".join(f"{name}={value!r}" for name, value in result.arguments.items())
    return [
        f"{place}: {result.reason}",
        f"broken contract: {result.contract}",
        f"shortest case found: {sequence} (seed {result.seed})",
        "to see it again:",
        *result.reproduction.split("\n"),
    ]


def golden_lines(result: GoldenResult) -> list[str]:
    """A golden's name, what is said of it, and every array that has changed, as far as listed."""
    return [f"{result.name}: {result.lines[0]}", *result.lines[1:]]


def loose_findings(report: Report) -> list[Finding]:
    """Findings that belong to no leg of the report, and that are no audit's own."""
    return [
        finding
        for finding in report.findings
        if finding.leg not in report.legs and not finding.id.startswith(AUDIT)
    ]


def audit_lines(audit: AuditResult) -> list[str]:
    """What a person wants to know of one audit: what is wrong, then how much was compared."""
    told = listed([str(check) for check in audit.odd])
    compared = ", ".join(f"{count} {outcome}" for outcome, count in audit.counts.items())
    return [*told, " · ".join([compared or "nothing was compared", *audit.notes])]
