"""Audits in every report: one line each, failures with what was expected and found."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from io import StringIO
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from edgeverify.core.results import (
    FAIL,
    NOT_APPLICABLE,
    PASS,
    UNCHECKED,
    AuditResult,
    Check,
    Finding,
    Report,
)
from edgeverify.report import html, junit
from edgeverify.report.terminal import console_for, print_report

WRONG = "rotary base (ModelConfig): expected 5300.0, found 10000.0"


@pytest.fixture
def failed(report: Callable[..., Report], audits: Callable[..., Any]) -> Report:
    """The legs pass and one audit fails."""
    finding = Finding("audit.config", "authoring", "", WRONG)
    return replace(report(), audits=audits(config=FAIL), findings=(finding,))


def printed(report: Report) -> list[str]:
    stream = StringIO()
    print_report(report, console_for(stream))
    return stream.getvalue().splitlines()


def test_a_failing_audit_fails_the_report(failed: Report) -> None:
    assert (failed.outcome, failed.passed) == (FAIL, False)


def test_an_unchecked_audit_is_no_pass(
    report: Callable[..., Report], audits: Callable[..., Any]
) -> None:
    assert replace(report(), audits=audits(weights=UNCHECKED)).outcome == UNCHECKED
    assert replace(report(), audits=audits()).outcome == PASS
    assert Report(case={}, environment={}, legs={}, audits=audits()).outcome == UNCHECKED


def test_the_terminal_has_one_line_for_each_and_tells_a_failure_once(failed: Report) -> None:
    lines = printed(failed)
    assert lines[1:3] == [
        "cause  rotary base is 10000, should be 5300",
        "       found only by the config audit",
    ]
    assert lines[6:10] == [
        "✗ config      1 of 2 values differ: rotary base",
        "✓ weights     2 tensors agree",
        "✓ signatures  2 tensors agree",
        "✓ edges       2 steps agree",
    ]
    assert lines[10].startswith("✓ authoring   Hugging Face → port: 66 taps agree")
    assert sum("10000" in line for line in lines) == 1


def test_a_long_list_is_cut(failed: Report) -> None:
    checks = tuple(Check(f"tensor {i}", "file", FAIL, "a", "b") for i in range(9))
    lines = printed(replace(failed, audits={"weights": AuditResult("weights", checks)}))
    assert lines[1:5] == [
        "cause  tensor 0 is b, should be a · weights audit (file)",
        "       tensor 1 is b, should be a · weights audit (file)",
        "       tensor 2 is b, should be a · weights audit (file)",
        "       and 6 more: see -v",
    ]
    assert "✗ weights     9 of 9 tensors differ: tensor 0 and 8 more" in lines


def test_junit_has_one_testcase_for_each(failed: Report) -> None:
    root = ET.fromstring(junit.render(failed))
    cases = {
        case.get("name"): [child.tag for child in case]
        for case in root.iter("testcase")
        if case.get("classname") == "tinyllama.tiny.audits"
    }
    assert cases == {"config": ["failure"], "weights": [], "signatures": [], "edges": []}
    assert (root.get("tests"), root.get("failures")) == ("26", "1")
    (told,) = root.iter("failure")
    assert told.get("message") == "config: fail: rotary base is 10000, should be 5300"
    assert WRONG in (told.text or "")


def test_html_has_a_row_for_each(failed: Report) -> None:
    page = html.render(failed)
    badge = '<span class="badge fail">✗ fail</span>'
    assert f"<tr><th>config</th><td>{badge}</td>" in page
    assert page.count(WRONG) == 1


def test_json_has_every_check_and_the_notes(failed: Report) -> None:
    audits = {**failed.audits, "signatures": AuditResult("signatures", (), ("a fact",))}
    found = json.loads(json.dumps(replace(failed, audits=audits).to_dict()))["audits"]
    assert list(found) == ["config", "weights", "signatures", "edges"]
    assert found["config"]["outcome"] == FAIL
    assert found["config"]["counts"] == {PASS: 1, FAIL: 1}
    assert found["config"]["checks"][1] == {
        "item": "rotary base",
        "where": "ModelConfig",
        "outcome": FAIL,
        "expected": "5300.0",
        "found": "10000.0",
        "reason": "",
    }
    assert found["signatures"] == {
        "outcome": UNCHECKED,
        "counts": {},
        "checks": [],
        "notes": ["a fact"],
    }


def test_what_is_not_applicable_neither_passes_nor_fails() -> None:
    nothing = AuditResult("config", (Check("window", "file", NOT_APPLICABLE),))
    assert nothing.outcome == UNCHECKED
    assert replace(nothing, checks=(*nothing.checks, Check("x", "", PASS))).outcome == PASS
