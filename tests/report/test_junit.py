from __future__ import annotations

from collections.abc import Callable
from xml.etree import ElementTree as ET

from edgeverify.core.results import AuditResult, Report
from edgeverify.report.junit import render


def parsed(report: Report) -> ET.Element:
    return ET.fromstring(render(report).encode())


def test_one_testcase_for_each_leg_and_step(report: Callable[..., Report]) -> None:
    root = parsed(report())
    cases = root.findall(".//testcase")
    assert [(case.get("classname"), case.get("name")) for case in cases[:2]] == [
        ("tinyllama.tiny.authoring", "prefill.0"),
        ("tinyllama.tiny.authoring", "prefill.1"),
    ]
    assert len(cases) == 22
    assert [root.get(key) for key in ("tests", "failures", "errors")] == ["22", "0", "0"]
    assert root.get("time") == "1.750"


def test_a_failure_carries_message_and_ratios(report: Callable[..., Report]) -> None:
    root = parsed(report("fail"))
    (failure,) = root.findall(".//failure")
    assert failure.get("message") == (
        "authoring prefill.0: fail: cause not named; first at prefill.0/blocks.1.attn.k: error "
        "71.0 times float32 noise (allowed 1.50)"
    )
    assert "Look at the key projection." in (failure.text or "")
    case = root.findall(".//testcase")[0]
    facts = {p.get("name"): p.get("value") for p in case.findall("properties/property")}
    assert facts == {
        "outcome": "fail",
        "taps": "6",
        "error_ratio": "71.0",
        "error_ratio_allowed": "1.50",
        "row_ratio": "92.3",
        "row_ratio_allowed": "4.00",
    }


def test_unchecked_is_an_error_and_never_a_skip(report: Callable[..., Report]) -> None:
    root = parsed(report(conversion="unchecked", reason="x"))
    (error,) = root.findall(".//error")
    assert error.get("type") == "unchecked"
    assert not root.findall(".//skipped")
    assert root.findall("testsuite")[0].get("errors") == "1"


def test_nothing_compared_is_an_error() -> None:
    root = parsed(Report(case={"model": "x"}, environment={}, legs={}))
    assert root.get("errors") == "1"
    assert root.find(".//error") is not None


def test_text_is_escaped_and_control_characters_are_replaced(
    report: Callable[..., Report],
) -> None:
    reason = 'a <b> & "c" \x1b[31m\x00 \ud800 é'
    root = parsed(report(conversion="unchecked", reason=reason, checkpoint="<&>\x07"))
    (error,) = root.findall(".//error")
    assert 'a <b> & "c" \ufffd[31m\ufffd \ufffd é' in (error.get("message") or "")
    values = {p.get("name"): p.get("value") for p in root.findall("testsuite/properties/property")}
    assert values["checkpoint"] == "<&>\ufffd"


def test_what_is_counted_is_what_is_there(audits: Callable[..., dict[str, AuditResult]]) -> None:
    made = Report(case={"model": "a\x00b"}, environment={}, legs={}, audits=audits(config="fail"))
    root = ET.fromstring(render(made))
    cases = root.findall(".//testcase")
    assert [root.get(name) for name in ("tests", "failures", "errors")] == ["5", "1", "1"]
    assert len(cases) == 5
    assert cases[-1].get("classname") == "a\ufffdb"
