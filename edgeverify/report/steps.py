"""A leg cut into its steps, as JUnit and pytest show it.

The outcomes are those that ``compare`` gave to the taps and to the leg; here they are gathered.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

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
from edgeverify.report.answer import answer_of
from edgeverify.report.answer_text import body_lines
from edgeverify.report.words import audit_lines, counts, leg_lines, listed, tap_line


@dataclass(frozen=True)
class StepResult:
    """One step of one leg.

    Attributes:
        leg: the leg's name.
        step: ``prefill.0``, or ``""`` for a leg without any tap.
        outcome: ``pass``, ``fail`` or ``unchecked``.
        taps: the step's taps, in forward order.
    """

    leg: str
    step: str
    outcome: str
    taps: tuple[TapResult, ...] = ()

    def worst(self, field: str) -> float | None:
        """The largest ``error_ratio`` or ``row_ratio`` of the step, or None."""
        ratios = [getattr(tap, field) for tap in self.taps]
        return max((ratio for ratio in ratios if ratio is not None), default=None)


def step_results(leg: LegResult) -> list[StepResult]:
    """The leg's steps in order.

    A leg that is no pass never shows passing steps only: where none of its steps explains the
    leg's outcome, all of them take it. A leg without taps is one nameless step, and no pass.
    """
    grouped: dict[str, list[TapResult]] = {}
    for tap in leg.taps:
        grouped.setdefault(tap.tap.partition("/")[0], []).append(tap)
    steps = [
        StepResult(leg.name, step, worst_outcome([tap.outcome for tap in taps]), tuple(taps))
        for step, taps in grouped.items()
    ]
    if not steps:
        return [StepResult(leg.name, "", UNCHECKED if leg.outcome == PASS else leg.outcome)]
    if leg.outcome == PASS or leg.outcome in [step.outcome for step in steps]:
        return steps
    return [replace(step, outcome=leg.outcome) for step in steps]


def find_step(leg: LegResult, step: str) -> StepResult:
    """The leg's result at ``step``, or of all its taps where ``step`` is ``""``.

    A step that the leg does not have is no pass.
    """
    if not step:
        return StepResult(leg.name, "", leg.outcome, tuple(leg.taps))
    missing = StepResult(leg.name, step, UNCHECKED if leg.outcome == PASS else leg.outcome)
    return next((result for result in step_results(leg) if result.step == step), missing)


def failure_text(report: Report, name: str, step: str = "") -> str:
    """Why a leg's step, or an audit, is no pass: the answer first, then what was measured.

    The first line says which, its outcome, and the cause or, where none is named, the place.

    Args:
        report: that it is of.
        name: of the leg or the audit.
        step: of the leg.
    """
    leg = report.legs.get(name)
    if leg is None:
        outcome, rest = report.audits[name].outcome, audit_lines(report.audits[name])
        said = "\n".join([f"{name}: {outcome}: {rest[0]}", *rest[1:]])
    else:
        result = find_step(leg, step)
        outcome, said = result.outcome, step_text(leg, result, report.findings)
    answer = answer_of(report, name)
    if not answer.cause:  # the leg passes and has no such step
        return said
    named = answer.named or outcome == UNCHECKED or not answer.where
    told = answer.cause[0] if named else f"cause not named; {answer.where[-1]}"
    place = f"{name} {step}".rstrip()
    return "\n".join([f"{place}: {outcome}: {told}", *body_lines(answer), "", said])


def step_text(leg: LegResult, result: StepResult, findings: Iterable[Finding] = ()) -> str:
    """Why a step is no pass: first the leg in short, then the step's own taps.

    Args:
        leg: the leg.
        result: one of ``step_results(leg)``.
        findings: the report's findings.
    """
    place = f"{leg.name} {result.step}".rstrip()
    summary = leg_lines(replace(leg, taps=()), findings)[:-1]  # its taps follow, by step
    first, *rest = summary or ["nothing was compared"]
    lines = [f"{place}: {result.outcome}: {first}", *rest]
    odd = [tap for tap in result.taps if tap.outcome in (FAIL, UNCHECKED)]
    if odd:
        lines.append("taps of this step:")
        lines += [f"  {line}" for line in listed([tap_line(tap, leg.threshold) for tap in odd])]
    if result.taps:
        lines.append(counts(result.taps))
    return "\n".join(lines)
