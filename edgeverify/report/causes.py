"""Named causes: what the diagnosis, the operators and the audits say, equal things merged.

Nothing is judged here. A cause that two of them name is one cause, with both as its witnesses.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import replace

from edgeverify.core.results import Finding, Report
from edgeverify.report.audit_causes import audit_causes
from edgeverify.report.cause import (
    CODE,
    CONFIG,
    LAYER,
    MISPLACED,
    OPERATOR,
    WEIGHTS,
    Cause,
    any_layer,
)
from edgeverify.report.places import blocks_of, compact

PORT_PLACES = ("ModelConfig", "module")
TENSORS = (WEIGHTS, MISPLACED)
# Kinds of the diagnosis that are a tensor with other values.
OF_TENSORS = ("weight", "bias", "norm.weight", "norm.bias", "head.weight", "embedding.table")
# The diagnosis may have fitted a number, and tells six digits of it.
FITTED = 1e-4
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?")


def named_causes(report: Report) -> list[Cause]:
    """All causes that are named, the most certain first: those that several name."""
    audited = [cause for name, audit in report.audits.items()
               for cause in audit_causes(name, audit, report)]  # fmt: skip
    told = [_of_diagnosis(f) for f in report.findings if f.id == "authoring.cause"]
    merged = _agreeing(told, audited)
    merged += _of_operators([f for f in report.findings if f.operator])
    return sorted(merged, key=lambda cause: -len(cause.seen))


def _agreeing(told: Sequence[Cause], audited: Sequence[Cause]) -> list[Cause]:
    """The diagnosis' causes and the audits'; what both name is one, in the audit's words.

    Several of the diagnosis' may be one of the audit's: a layer that was loaded twice is seen at
    every tap.
    """
    left, out = list(told), []
    for cause in audited:
        same = [one for one in left if _same(one, cause)]
        left = [one for one in left if one not in same]
        if not same:
            out.append(cause)
        elif cause.kind in TENSORS and not set(cause.places) & set(PORT_PLACES):
            # The module holds the tensors rightly and takes one for the other.
            out.append(replace(same[0], seen=(*cause.seen, *same[0].seen)))
        else:
            taps = dict.fromkeys(witness for one in same for witness in one.seen)
            seen = ("diagnosis",) if len(taps) > 1 else tuple(taps)
            words = cause.text if cause.found else _in_words(cause, same[0])
            blocks = cause.blocks or same[0].blocks
            out.append(replace(cause, text=words, seen=(*cause.seen, *seen), blocks=blocks))
    return out + left


def _in_words(audited: Cause, told: Cause) -> str:
    """What is no number is told by the diagnosis: *gelu* is *exact GELU* there."""
    if audited.kind != CONFIG:
        return audited.text
    return told.text if audited.label in told.text else f"{audited.label}: {told.text}"


def _same(told: Cause, audited: Cause) -> bool:
    if audited.kind == CONFIG:
        alike = set(told.kinds) & set(audited.kinds) and _has(told.text, audited.found)
        apart = audited.blocks and told.blocks and not audited.blocks & told.blocks
        return bool(alike and not apart)
    if audited.kind not in TENSORS or audited.leg != told.leg:
        return False
    if set(told.kinds) & set(OF_TENSORS):
        said = told.text + told.detail
        return any(name in said or any_layer(name) in said for name in audited.tensors)
    # What only the file shows of a port is which of its tensors the port takes for which.
    inner = {int(n) for name in audited.tensors for n in LAYER.findall(name)}
    return not set(audited.places) & set(PORT_PLACES) and bool(inner & told.blocks)


def _has(text: str, value: str) -> bool:
    """Whether a number stands in a text, as far as a fit can tell; what is none is in any."""
    if not value:
        return True
    numbers = [float(number) for number in _NUMBER.findall(text)]
    return any(math.isclose(number, float(value), rel_tol=FITTED) for number in numbers)


def _of_diagnosis(finding: Finding) -> Cause:
    first, *others = finding.changes or (finding.message,)
    what, arrow, right = first.partition(" → ")
    where = compact(finding.taps)
    repair = f"repair: {right}" if arrow else ""
    return Cause(
        text=f"{what}, should be: {right}" if arrow else what,
        kind=CODE,
        leg=finding.leg,
        seen=(f"diagnosis ({where})" if where else "diagnosis",),
        repair=repair,
        kinds=(finding.cause,),
        blocks=frozenset(blocks_of(finding.taps)),
        detail=f"or, as good: {' | '.join(others)}" if others else "",
    )


def _of_operators(findings: Sequence[Finding]) -> list[Cause]:
    """One cause for the same kind of operator of one module, in whichever signatures."""
    alike: dict[tuple[str, str, str], list[Finding]] = {}
    for finding in findings:
        key = finding.leg, finding.operator.partition(" ")[2], finding.module
        alike.setdefault(key, []).append(finding)
    return [
        Cause(
            text=f"{name} of {module}: right inputs, wrong output",
            kind=OPERATOR,
            leg=leg,
            seen=("operators in float64",),
            places=tuple(f"op {f.operator.partition(' ')[0]} of {f.signature}" for f in group),
        )
        for (leg, name, module), group in alike.items()
    ]
