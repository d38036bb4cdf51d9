"""What a judged leg, or a refusal, makes of a fault's row."""

from __future__ import annotations

from dataclasses import replace

import pytest

from conftest import make_leg
from edgeverify.core.results import FAIL, PASS
from edgeverify.suites.selftest.faults.fault import Fault
from edgeverify.suites.selftest.rows import (
    AUDITS,
    DETECTED,
    FALSE_ALARM,
    MISSED,
    QUIET,
    Row,
    of_leg,
    of_refusal,
    summarise,
)

KEY = Fault(
    name="key",
    area="rope",
    description="A made-up fault.",
    cause="rotary base",
    ports=("tinyllama",),
    where=("blocks.1.attn.k",),
    port=lambda port: port,
)
HARMLESS = replace(KEY, where=(), harmless="nothing differs")


def row(fault: Fault, outcome: str) -> Row:
    return of_leg(fault, "tinyllama", make_leg("authoring", outcome), 2, 0.5)


def test_a_fault_that_is_seen_where_it_is_is_right_in_every_respect() -> None:
    found = row(KEY, FAIL)
    assert found.verdict == DETECTED
    assert (found.leg_right, found.block_right, found.sublayer_right) == (True, True, True)
    assert found.ratio == pytest.approx(71.0)
    assert found.excess == pytest.approx(71.0 / 1.5)
    assert not found.wrong


@pytest.mark.parametrize(
    ("where", "block", "sublayer"),
    [
        (("blocks.1.attn.q",), True, False),
        (("blocks.0.attn.k",), False, False),
        (("blocks.*.attn.k",), False, False),
    ],
)
def test_a_fault_that_is_seen_elsewhere_is_wrongly_blamed(
    where: tuple[str, ...], block: bool, sublayer: bool
) -> None:
    found = row(replace(KEY, where=where), FAIL)
    assert (found.block_right, found.sublayer_right) == (block, sublayer)
    assert found.wrong


def test_the_wrong_step_is_wrong() -> None:
    assert row(replace(KEY, step="prefill.0"), FAIL).sublayer_right
    assert not row(replace(KEY, step="decode.0"), FAIL).sublayer_right


def test_the_wrong_leg_is_wrong() -> None:
    fault = replace(KEY, port=None, file=lambda source, target: None)
    assert row(fault, FAIL).leg_right is False


def test_a_fault_that_is_not_seen_is_missed_unless_it_cannot_be() -> None:
    assert row(KEY, PASS).verdict == MISSED
    assert row(replace(KEY, unseen="too small"), PASS).verdict == AUDITS


def test_a_harmless_change_that_is_reported_is_a_false_alarm() -> None:
    assert row(HARMLESS, PASS).verdict == QUIET
    assert row(HARMLESS, FAIL).verdict == FALSE_ALARM
    assert of_refusal(HARMLESS, "tinyllama", "authoring", "no", 0.1).verdict == FALSE_ALARM


def test_a_harmless_change_must_tell_of_what_differs() -> None:
    leg = make_leg()
    told = tuple(
        replace(tap, reason="differs") if tap.tap.endswith("/blocks.1.attn.k") else tap
        for tap in leg.taps
    )
    fault = replace(HARMLESS, where=("blocks.1.attn.k",))
    assert of_leg(fault, "tinyllama", replace(leg, taps=told), 2, 0.1).verdict == QUIET
    assert of_leg(fault, "tinyllama", leg, 2, 0.1).verdict == FALSE_ALARM
    assert of_leg(HARMLESS, "tinyllama", replace(leg, taps=told), 2, 0.1).verdict == FALSE_ALARM


def test_a_refusal_must_name_what_is_wrong() -> None:
    fault = replace(KEY, where=("refused",), refusal="lm_head")
    right = of_refusal(fault, "tinyllama", "authoring", "nothing takes 'lm_head.weight'", 0.1)
    assert right.verdict == DETECTED
    assert not right.wrong
    assert of_refusal(fault, "tinyllama", "authoring", "something else", 0.1).wrong
    # A fault that should have shown in the run, but kept it from running, is wrongly placed.
    assert of_refusal(KEY, "tinyllama", "authoring", "RuntimeError", 0.1).block_right is False


def test_the_summary_counts_and_a_miss_or_a_false_alarm_fails_it() -> None:
    found, missed = row(KEY, FAIL), row(KEY, PASS)
    quiet, alarm = row(HARMLESS, PASS), row(HARMLESS, FAIL)
    total = summarise([found, quiet])
    assert (total.detected, total.missed, total.false_alarms) == (1, 0, 0)
    assert total.smallest_ratio == pytest.approx(71.0)
    assert total.largest_ratio == pytest.approx(1.02)
    assert total.passed
    assert not summarise([found, missed, quiet]).passed
    assert not summarise([found, alarm]).passed
    assert not summarise([quiet]).passed  # nothing was detected: nothing was shown


def test_a_diagnosis_counts_once_there_is_one() -> None:
    found = row(replace(KEY, kinds=("rope.base",)), FAIL)
    assert summarise([found]).diagnosed == 0
    named = [("rope.base",), ("norm.eps",), ("rope.base", "norm.eps"), ()]
    total = summarise([replace(found, diagnosis=kinds) for kinds in named])
    assert (total.diagnosed, total.diagnosis_right, total.diagnosis_wrong) == (4, 1, 2)


def test_the_kinds_that_are_true_stand_in_the_catalogue_and_not_in_the_json() -> None:
    assert "kinds" not in row(replace(KEY, kinds=("rope.base",)), FAIL).to_dict()


def test_a_row_is_json_even_over_a_floor_of_zero() -> None:
    assert replace(row(KEY, FAIL), ratio=float("inf")).to_dict()["ratio"] == "inf"
