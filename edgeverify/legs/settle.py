"""Settles what an audit could not read by what a leg shows.

An audit reads what a model is made of, a leg shows what it computes. A field may be written in a
way that the audit does not know: RoPE built by the port's own function, a norm written by hand, a
mask that the graph completes itself. If the model then agrees with the reference at every tap, the
field is right, however it is represented.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from edgeverify.core.case import Case
from edgeverify.core.leg import AUTHORING, CONVERSION
from edgeverify.core.results import CONFIG, PASS, UNCHECKED, AuditResult, Check, LegResult

# Fields that change what some tap of any run computes. Not among them: sizes and lengths, which no
# number depends on, and an eps, whose effect a trained model's activations may hide.
SHOWN = frozenset(
    {
        "activation",
        "attention norm",
        "attention norm factor",
        "attention output norm",
        "attention output norm factor",
        "attention softcap",
        "embedding scale",
        "feed-forward norm",
        "feed-forward norm factor",
        "feed-forward output norm",
        "feed-forward output norm factor",
        "final norm",
        "final norm factor",
        "final softcap",
        "gated",
        "key norm",
        "key norm factor",
        "parallel residual",
        "query norm",
        "query norm factor",
        "query scale",
        "rotary base",
        "rotary elements",
        "rotary scaling",
    }
)
WINDOW = "window"


def settled(
    audits: Mapping[str, AuditResult], legs: Mapping[str, LegResult], case: Case
) -> dict[str, AuditResult]:
    """Returns the audits, with fields of the config that the legs settle as passed.

    Args:
        audits: by name.
        legs: by name, judged.
        case: what was run; a window counts as shown if the case has more positions.
    """
    found = dict(audits)
    config = found.get(CONFIG)
    if config is not None:
        positions = max((step.end for step in case.steps), default=0)
        checks = tuple(_settled(check, legs, positions) for check in config.checks)
        found[CONFIG] = replace(config, checks=checks)
    return found


def _settled(check: Check, legs: Mapping[str, LegResult], positions: int) -> Check:
    name = CONVERSION if check.where.startswith("file") else AUTHORING
    leg = legs.get(name)
    if check.outcome != UNCHECKED or not check.where or leg is None or not _agrees(leg):
        return check
    if check.item == WINDOW:
        shown = not check.expected.isdigit() or int(check.expected) < positions
    else:
        shown = check.item in SHOWN
    if not shown:
        return check
    told = f"{check.reason}; the leg {name} agrees at every tap, so the same is computed"
    return replace(check, outcome=PASS, reason=told)


def _agrees(leg: LegResult) -> bool:
    return bool(leg.taps) and all(tap.outcome == PASS for tap in leg.taps)
