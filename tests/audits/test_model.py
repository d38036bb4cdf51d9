"""Results of audits as plain data: their text, their order, their outcome."""

from __future__ import annotations

import pytest

from edgeverify.audits.model import Readings
from edgeverify.core.results import (
    CONFIG,
    FAIL,
    NOT_APPLICABLE,
    PASS,
    SIGNATURES,
    UNCHECKED,
    WEIGHTS,
    AuditResult,
    Check,
    merged,
    unchecked,
)


@pytest.mark.parametrize(
    ("check", "text"),
    [
        (Check("width", "file", FAIL, "64", "65"), "width (file): expected 64, found 65"),
        (Check("width", "file", FAIL, "64"), "width (file): expected 64, found nothing"),
        (Check("width", "file", FAIL, "", "65"), "width (file): expected nothing, found 65"),
        (Check("width", "", PASS), "width"),
        (Check("width", "file", UNCHECKED, reason="not read"), "width (file): not read"),
        (Check("a", "file", FAIL, "1", "2", "by 1 ulp"), "a (file): expected 1, found 2: by 1 ulp"),
    ],
)
def test_a_check_says_what_was_expected_and_what_was_found(check: Check, text: str) -> None:
    assert str(check) == text


def test_audits_go_by_the_names_of_the_report_and_checks_tell_nothing_of_themselves() -> None:
    assert (CONFIG, WEIGHTS, SIGNATURES) == ("config", "weights", "signatures")
    assert Check("width", "file", PASS) == Check("width", "file", PASS, "", "", "")


def result(*outcomes: str) -> AuditResult:
    return AuditResult(CONFIG, tuple(Check(f"{i}", "file", o) for i, o in enumerate(outcomes)))


@pytest.mark.parametrize(
    ("outcomes", "whole"),
    [
        ((PASS, NOT_APPLICABLE), PASS),
        ((PASS, UNCHECKED, PASS), UNCHECKED),
        ((UNCHECKED, FAIL, PASS), FAIL),
        ((NOT_APPLICABLE,), UNCHECKED),
        ((), UNCHECKED),
    ],
)
def test_an_audit_is_as_bad_as_its_worst_check(outcomes: tuple[str, ...], whole: str) -> None:
    assert result(*outcomes).outcome == whole


def test_what_is_odd_is_listed_failures_first() -> None:
    audit = result(UNCHECKED, FAIL, PASS, NOT_APPLICABLE, UNCHECKED, FAIL)
    assert [check.item for check in audit.odd] == ["1", "5", "0", "4"]
    assert list(audit.counts.items()) == [
        (PASS, 1), (FAIL, 2), (UNCHECKED, 2), (NOT_APPLICABLE, 1),
    ]  # fmt: skip
    assert result(FAIL).counts == {FAIL: 1}


def test_a_report_has_every_check_in_full() -> None:
    audit = AuditResult(CONFIG, (Check("width", "file", FAIL, "64", "65", "why"),), ("a note",))
    assert audit.to_dict() == {
        "outcome": FAIL,
        "counts": {FAIL: 1},
        "checks": [
            {
                "item": "width",
                "where": "file",
                "outcome": FAIL,
                "expected": "64",
                "found": "65",
                "reason": "why",
            }
        ],
        "notes": ["a note"],
    }
    assert AuditResult(CONFIG).to_dict()["notes"] == []


def test_parts_are_put_together_in_order() -> None:
    first = AuditResult("a", (Check("1", "", PASS),), ("one",))
    second = AuditResult("b", (Check("2", "", FAIL),), ("two",))
    whole = merged(CONFIG, iter([first, second]))
    assert whole == AuditResult(CONFIG, first.checks + second.checks, ("one", "two"))


def test_an_audit_that_could_not_be_made_is_one_check() -> None:
    audit = unchecked(CONFIG, "file", "it is gone")
    assert audit == AuditResult(CONFIG, (Check(CONFIG, "file", UNCHECKED, "", "", "it is gone"),))


def test_readings_are_not_shared() -> None:
    one, two = Readings("file"), Readings("module")
    one.values["width"], one.unread["heads"] = 64, "why"
    assert (two.values, two.unread) == ({}, {})
