"""A nightly run as JUnit XML: one testcase per case, its ratios as properties."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from xml.etree import ElementTree as ET

from edgeverify.core.results import FAIL, PASS
from edgeverify.suites.nightly.report_text import case_line, legs, reason

# See edgeverify.report.junit.
_FORBIDDEN = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def render(document: Mapping[str, Any]) -> str:
    """The XML document. ``unchecked`` is an ``<error>``: readers count ``<skipped>`` as green."""
    suites = ET.Element("testsuites", name="edgeverify nightly")
    by_model: dict[str, list[tuple[str, Mapping[str, Any]]]] = {}
    for name, report in document["cases"].items():
        by_model.setdefault(name.partition(".")[0], []).append((name, report))
    total = {"tests": 0, "failures": 0, "errors": 0}
    seconds = 0.0
    for model, cases in by_model.items():
        suite = ET.SubElement(suites, "testsuite", name=f"edgeverify.suites.nightly.{model}")
        found = {"tests": len(cases), "failures": 0, "errors": 0}
        took = 0.0
        for name, report in cases:
            spent = float(report.get("nightly", {}).get("seconds") or 0.0)
            took += spent
            kind = _add(suite, model, name, report, spent)
            if kind:
                found[kind] += 1
        _counted(suite, found, took)
        total = {key: total[key] + found[key] for key in total}
        seconds += took
    if not document["cases"]:
        suite = ET.SubElement(suites, "testsuite", name="edgeverify.suites.nightly")
        case = ET.SubElement(suite, "testcase", classname="nightly", name="nightly")
        ET.SubElement(case, "error", type="unchecked", message="there is no case")
        total = {"tests": 1, "failures": 0, "errors": 1}
        _counted(suite, total, 0.0)
    _counted(suites, total, seconds)
    ET.indent(suites)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ET.tostring(suites, "unicode") + "\n"


def _add(
    suite: ET.Element, model: str, name: str, report: Mapping[str, Any], seconds: float
) -> str:
    """One testcase; what it counts as besides a test, or ""."""
    case = ET.SubElement(
        suite, "testcase", classname=f"nightly.{model}", name=name, time=f"{seconds:.3f}"
    )
    holder = ET.SubElement(case, "properties")
    _property(holder, "outcome", report["outcome"])
    for leg, facts in legs(report):
        _property(holder, f"{leg}.outcome", facts["outcome"])
        worst, allowed = facts.get("worst") or {}, facts.get("threshold") or {}
        for ratio, limit in (("error_ratio", "rms"), ("row_ratio", "row")):
            if worst.get(ratio) is not None:
                _property(holder, f"{leg}.{ratio}", worst[ratio])
                _property(holder, f"{leg}.{ratio}_allowed", allowed.get(limit))
    if report["outcome"] == PASS:
        return ""
    failed = report["outcome"] == FAIL
    told = ET.SubElement(
        case,
        "failure" if failed else "error",
        type=report["outcome"],
        message=_clean(reason(report)),
    )
    said = [case_line(name, report), *(finding["message"] for finding in report["findings"])]
    said += [line for golden in report.get("goldens", ()) for line in golden["lines"]]
    told.text = _clean("\n".join(said))
    return "failures" if failed else "errors"


def _property(holder: ET.Element, name: str, value: Any) -> None:
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    ET.SubElement(holder, "property", name=_clean(name), value=_clean(text))


def _counted(element: ET.Element, found: Mapping[str, int], seconds: float) -> None:
    for name, count in found.items():
        element.set(name, str(count))
    element.set("skipped", "0")
    element.set("time", f"{seconds:.3f}")


def _clean(text: str) -> str:
    return _FORBIDDEN.sub("\ufffd", text)
