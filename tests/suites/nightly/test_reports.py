"""A nightly run as text, Markdown, JUnit and HTML."""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree as ET

import pytest

from edgeverify.suites.nightly import report_html, report_junit, report_text
from tests.suites.nightly.fake import report

WHY = "logits differ | by <much>"


def document(**cases: str) -> dict[str, Any]:
    reports = {}
    for name, outcome in cases.items():
        found = report(outcome, WHY)
        found["nightly"] = {"id": name, "seconds": 2.0, "peak_memory": 2**30}
        reports[f"gemma2.tiny.default.{name}"] = found
    return {
        "schema": 1,
        "kind": "nightly",
        "started": "2026-11-24T02:17:00+00:00",
        "seconds": 61.0,
        "outcome": "fail" if "fail" in cases.values() else "pass",
        "shard": None,
        "environment": {"torch": "2.13"},
        "differing": {},
        "missing": [],
        "excluded": [{"id": "gemma2.tiny.default.int3", "reason": "is not there"}],
        "cases": reports,
    }


@pytest.fixture
def failed() -> dict[str, Any]:
    return document(float32="pass", fp16="fail", int8="unchecked")


def test_the_text_has_the_outcome_the_grid_and_what_is_odd(failed: dict[str, Any]) -> None:
    assert report_text.lines(failed) == [
        "FAIL nightly · 3 cases: 1 pass, 1 fail, 1 unchecked · 1 excluded by the matrix · 61 s",
        "",
        "                     float32  fp16  int8",
        "gemma2.tiny.default  pass     FAIL  unchecked",
        "",
        f"FAIL gemma2.tiny.default.fp16 2.0 s: authoring: {WHY}",
        f"unchecked gemma2.tiny.default.int8 2.0 s: authoring: {WHY}",
        "excluded: 1 cases, gemma2.tiny.default.int3 …: is not there",
    ]


def test_a_finding_tells_more_than_a_leg() -> None:
    found = report("fail", "it differs")
    found["findings"] = [
        {"id": "audit.config", "leg": "other", "tap": "", "message": "not this"},
        {"id": "authoring.divergence", "leg": "authoring", "tap": "", "message": "look at RoPE"},
    ]
    assert report_text.reason(found) == "authoring: look at RoPE"
    without = {**found, "legs": {}}
    assert report_text.reason(without) == "not this"
    # An audit alone may fail, too.
    found["legs"]["authoring"]["outcome"] = "pass"
    assert report_text.reason(found) == "not this"


def test_a_golden_that_no_longer_holds_is_the_reason() -> None:
    found = report("pass")
    found["outcome"] = "fail"
    found["goldens"] = [
        {"name": "a.safetensors", "outcome": "pass", "lines": ["holds"]},
        {"name": "b.safetensors", "outcome": "fail", "lines": ["the reference moved", "redo it"]},
    ]
    assert report_text.reason(found) == "golden b.safetensors: the reference moved"
    one = {**document(), "cases": {"x.float32": found}}
    assert "redo it" in report_junit.render(one)


def test_the_summary_escapes_what_is_no_markup(failed: dict[str, Any]) -> None:
    text = report_text.markdown(failed)
    assert text.startswith("### ❌ FAIL nightly · 3 cases")
    assert "| `gemma2.tiny.default` | ✅ | ❌ | ⚠️ |" in text
    assert "logits differ \\| by \\<much\\>" in text


def test_junit_has_a_testcase_per_case_with_its_ratios(failed: dict[str, Any]) -> None:
    root = ET.fromstring(report_junit.render(failed))
    counts = {name: root.get(name) for name in ("tests", "failures", "errors", "skipped", "time")}
    assert counts == {"tests": "3", "failures": "1", "errors": "1", "skipped": "0", "time": "6.000"}
    one = root.findall(".//testcase")[1]
    assert (one.get("classname"), one.get("name")) == (
        "nightly.gemma2",
        "gemma2.tiny.default.fp16",
    )
    properties = {p.get("name"): p.get("value") for p in one.findall(".//property")}
    assert properties["authoring.error_ratio"] == "1.25"
    assert properties["authoring.row_ratio_allowed"] == "4"
    assert properties["runtime:tf_lite:fp16.outcome"] == "pass"
    failure = one.find("failure")
    assert failure is not None
    assert failure.get("message") == f"authoring: {WHY}"
    # An unchecked case is an error: readers count what is skipped as green.
    assert root.findall(".//testcase")[2].find("error") is not None


def test_no_case_at_all_is_an_error() -> None:
    root = ET.fromstring(report_junit.render({**document(), "cases": {}}))
    assert root.get("errors") == "1"


def test_the_page_is_one_file_with_the_outcome_first(failed: dict[str, Any]) -> None:
    page = report_html.render(failed, pages="cases")
    assert page.index("FAIL nightly") < page.index("<table>")
    assert "by &lt;much&gt;" in page
    assert "<much>" not in page
    assert '<a href="cases/gemma2.tiny.default.fp16.html">fail</a>' in page
    assert "<script" not in page
    assert "http" not in page
    assert "<a " not in report_html.render(failed)


def test_what_differs_between_machines_is_told() -> None:
    found = {**document(float32="pass"), "differing": {"torch": ["2.13", "2.14"]}}
    assert "not the same for all: torch: 2.13, 2.14" in report_text.lines(found)
    assert "2.14" in report_html.render(found)


def test_a_name_that_is_markup_is_shown_as_it_is() -> None:
    name = """<b>&"'"""
    page = report_html.render(document(**{name: "fail"}), pages="cases")
    assert "<b>" not in page
    assert '<a href="cases/gemma2.tiny.default.&lt;b&gt;&amp;&#34;&#39;.html">' in page
