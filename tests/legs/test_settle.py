"""What an audit could not read counts as right where a leg shows it, and nowhere else."""

from __future__ import annotations

from dataclasses import replace

import pytest

from edgeverify.core.case import Case, Step
from edgeverify.core.leg import Leg
from edgeverify.core.results import (
    CONFIG,
    FAIL,
    PASS,
    UNCHECKED,
    WEIGHTS,
    AuditResult,
    Check,
    LegResult,
    TapResult,
)
from edgeverify.legs.settle import SHOWN, settled

CASE = Case("m", "tiny", "default", (8,), 16, (Step("prefill.0", "prefill_8", 8, 0, (1,) * 8),))
TAP = TapResult("prefill.0/logits", PASS)


def leg(name: str, *taps: TapResult) -> dict[str, LegResult]:
    outcome = PASS if all(tap.outcome == PASS for tap in taps) else FAIL
    return {name: LegResult(Leg(name), outcome, {}, taps)}


def told(check: Check, legs: dict[str, LegResult], audit: str = CONFIG) -> Check:
    (found,) = settled({audit: AuditResult(audit, (check,))}, legs, CASE)[audit].checks
    return found


def unread(item: str, where: str = "module", expected: str = "yarn") -> Check:
    return Check(item, where, UNCHECKED, expected, reason="it is the port's own")


@pytest.mark.parametrize("item", sorted(SHOWN))
@pytest.mark.parametrize(
    ("where", "name"),
    [("ModelConfig", "authoring"), ("module, block 2", "authoring"), ("file", "conversion")],
)
def test_a_leg_that_agrees_settles_what_it_computes(item: str, where: str, name: str) -> None:
    check = told(unread(item, where), leg(name, TAP))
    assert check.outcome == PASS
    assert check.reason == (
        f"it is the port's own; the leg {name} agrees at every tap, so the same is computed"
    )


@pytest.mark.parametrize(
    "legs",
    [
        {},
        leg("authoring"),
        leg("authoring", TAP, replace(TAP, outcome=FAIL)),
        leg("authoring", TAP, replace(TAP, outcome=UNCHECKED)),
        leg("conversion", TAP),
    ],
    ids=["no leg", "no taps", "fails", "a tap unread", "another leg"],
)
def test_no_other_leg_settles_anything(legs: dict[str, LegResult]) -> None:
    check = unread("rotary scaling", "ModelConfig")
    assert told(check, legs) == check


@pytest.mark.parametrize(
    "check",
    [
        replace(unread("rotary scaling"), outcome=FAIL),
        unread("max length"),
        unread("final norm eps"),
        unread("vocabulary"),
        unread("rotary scaling", where=""),
    ],
    ids=lambda check: f"{check.item} {check.outcome}",
)
def test_what_a_run_does_not_show_stays(check: Check) -> None:
    assert told(check, leg("authoring", TAP)) == check


def test_another_audit_stays() -> None:
    check = unread("rotary scaling")
    assert told(check, leg("authoring", TAP), WEIGHTS) == check


@pytest.mark.parametrize(
    ("expected", "outcome"), [("7", PASS), ("8", UNCHECKED), ("4096", UNCHECKED), ("none", PASS)]
)
def test_a_window_is_shown_by_more_positions_than_it_has(expected: str, outcome: str) -> None:
    check = unread("window", "file, block 0", expected)
    assert told(check, leg("conversion", TAP)).outcome == outcome
