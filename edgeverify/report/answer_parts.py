"""A line for each audit, leg and golden, and one for the invariants."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from edgeverify.core.results import (
    EDGES,
    FAIL,
    NOT_APPLICABLE,
    PASS,
    UNCHECKED,
    LegResult,
    Report,
    worst_outcome,
)
from edgeverify.report.words import invariants_line, number, plural

# What an audit compares.
NOUNS = {
    "config": "values",
    "weights": "tensors",
    "signatures": "tensors",
    "edges": "steps",
    "bundle": "fields",
}
# A leg's first word → what it compares.
COMPARES = {
    "authoring": "Hugging Face → port",
    "conversion": "port → .tflite",
    "quantization": "weights → file",
    "runtime": "interpreter → runtime",
}


@dataclass(frozen=True)
class Part:
    """One audit, leg, golden, or the invariants: what came of it, in short."""

    kind: str
    name: str
    outcome: str
    text: str


def compares(name: str, report: Report) -> str:
    """What a leg compares: ``Hugging Face → port``."""
    if "file" in report.case and name == "conversion":
        return "Hugging Face → .tflite"
    kind, _, rest = name.partition(":")
    told = COMPARES.get(kind, name)
    # ``runtime:tf_lite:dynamic_int8`` is that runtime's.
    return told.replace("runtime", rest.partition(":")[0]) if kind == "runtime" and rest else told


def parts_of(report: Report) -> Iterable[Part]:
    """A line for each audit and leg, in the report's order."""
    failed = any(leg.outcome == FAIL for leg in report.legs.values())
    for name, audit in report.audits.items():
        if name == EDGES and audit.outcome == UNCHECKED and failed:
            continue  # where a leg fails, edges are not walked: the leg's line says enough
        counts, noun = audit.counts, NOUNS.get(name, "weights")
        compared = sum(n for kind, n in counts.items() if kind != NOT_APPLICABLE)
        if audit.outcome == PASS:
            text = f"{counts.get(PASS, 0)} {noun} agree"
        elif counts.get(FAIL):
            items = dict.fromkeys(c.item for c in audit.checks if c.outcome == FAIL)
            text = f"{counts[FAIL]} of {compared} {noun} differ: {_some(items)}"
        else:
            items = dict.fromkeys(c.item for c in audit.odd)
            text = f"{counts[UNCHECKED]} of {compared} {noun} not checked: {_some(items)}"
            text = "not checked" if list(items) == [name] else text
        yield Part("audit", _audit_name(name), audit.outcome, text)
    for name, leg in report.legs.items():
        yield Part("leg", name, leg.outcome, _leg_text(leg, report))
    for golden in report.goldens:
        yield Part("golden", "golden", golden.outcome, f"{golden.name}: {golden.lines[0]}")
    asked = [r.outcome for r in report.invariants if r.outcome != NOT_APPLICABLE]
    if report.invariants:
        yield Part(
            "invariants", "invariants", worst_outcome(asked), invariants_line(report.invariants)
        )


def _audit_name(name: str) -> str:
    """The audit's name; that of a recipe's weights is not its leg's, which stands beside it."""
    recipe = name.partition(":")[2]
    return f"weights of {recipe}" if recipe else name


def _some(items: Iterable[str]) -> str:
    first, *more = items
    return f"{first} and {len(more)} more" if len(more) > 1 else ", ".join([first, *more])


def _leg_text(leg: LegResult, report: Report) -> str:
    if leg.outcome == PASS:
        told = f"{compares(leg.name, report)}: {plural(len(leg.taps), 'tap')} agree"
        if leg.worst is not None and leg.worst.error_ratio is not None:
            allowed = number(leg.threshold.get("rms"))
            told += f", worst {number(leg.worst.error_ratio)} of {allowed} allowed"
        moved = leg.attribution.get("kl")
        return f"{told.removesuffix(' allowed')}, KL {moved['file']:.2g}" if moved else told
    if not leg.taps:
        told = leg.reason if report.outcome == FAIL and leg.reason else "not checked"
        return f"{compares(leg.name, report)}: {told}"
    return f"{compares(leg.name, report)}: {odd_taps(leg)}"


def odd_taps(leg: LegResult) -> str:
    """How many taps of a leg that does not pass are why: ``319 of 363 taps differ``."""
    odd = sum(tap.outcome == leg.outcome for tap in leg.taps)
    verb = "differ" if leg.outcome == FAIL else "are unchecked"
    return f"{odd} of {plural(len(leg.taps), 'tap')} {verb}"
