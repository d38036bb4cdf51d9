"""The report as JUnit XML: one testcase per audit, and one per leg and step."""

from __future__ import annotations

import re
from xml.etree import ElementTree as ET

from edgeverify.core.results import FAIL, NOT_APPLICABLE, PASS, InvariantResult, Report
from edgeverify.report.steps import StepResult, failure_text, step_results
from edgeverify.report.words import invariant_lines, number

# XML 1.0 has no way to write these, not even as references (https://www.w3.org/TR/xml/#charsets).
_FORBIDDEN = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def render(report: Report) -> str:
    """The XML document. ``unchecked`` is an ``<error>``: readers count ``<skipped>`` as green."""
    model = f"{report.case.get('model', 'model')}.{report.case.get('size', '')}".rstrip(".")
    suites = ET.Element("testsuites", name="edgeverify")
    suite = ET.SubElement(suites, "testsuite", name=f"edgeverify.{model}")
    _properties(suite, {**_flat(report.case), **_flat(report.environment)})
    found = {"tests": 0, "failures": 0, "errors": 0, "skipped": 0}
    for name, audit in report.audits.items():
        found["tests"] += 1
        case = ET.SubElement(suite, "testcase", classname=f"{model}.audits", name=name)
        if audit.outcome != PASS:
            found[_told(case, audit.outcome, failure_text(report, name))] += 1
    for leg in report.legs.values():
        for step in step_results(leg):
            found["tests"] += 1
            case = ET.SubElement(
                suite, "testcase", classname=f"{model}.{leg.name}", name=step.step or leg.name
            )
            _properties(case, _measured(step, leg.threshold))
            if step.outcome == PASS:
                continue
            found[_told(case, step.outcome, failure_text(report, leg.name, step.step))] += 1
    for result in report.invariants:
        _add_invariant(suite, model, result, found)
    if not report.legs:
        found["tests"] = found["errors"] = 1
        case = ET.SubElement(suite, "testcase", classname=model, name="check")
        ET.SubElement(case, "error", type="unchecked", message="nothing was compared")
    for element in (suites, suite):
        for name, count in found.items():
            element.set(name, str(count))
        element.set("time", f"{sum(report.timings.values()):.3f}")
    ET.indent(suites)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ET.tostring(suites, "unicode") + "\n"


def _add_invariant(
    suite: ET.Element, model: str, result: InvariantResult, found: dict[str, int]
) -> None:
    """One testcase. One that does not apply is skipped: there is nothing to be green about."""
    found["tests"] += 1
    name = f"{result.invariant}[{result.implementation}]"
    case = ET.SubElement(suite, "testcase", classname=f"{model}.invariants", name=name)
    _properties(case, {"outcome": result.outcome, "cases": str(result.examples)})
    text = "\n".join(invariant_lines(result))
    if result.outcome == NOT_APPLICABLE:
        found["skipped"] += 1
        ET.SubElement(case, "skipped", message=_clean(text))
    elif result.outcome != PASS:
        found[_told(case, result.outcome, text)] += 1


def _told(case: ET.Element, outcome: str, text: str) -> str:
    """Says of a testcase why it is no pass; returns what it counts as."""
    kind = "failure" if outcome == FAIL else "error"
    told = ET.SubElement(case, kind, type=outcome, message=_clean(text.split("\n")[0]))
    told.text = _clean(text)
    return f"{kind}s"


def _measured(step: StepResult, threshold: object) -> dict[str, str]:
    allowed = dict(threshold) if isinstance(threshold, dict) else {}
    facts = {"outcome": step.outcome, "taps": str(len(step.taps))}
    for name, limit in (("error_ratio", "rms"), ("row_ratio", "row")):
        facts[name] = number(step.worst(name))
        facts[f"{name}_allowed"] = number(allowed.get(limit))
    return facts


def _flat(facts: object) -> dict[str, str]:
    """The plain values of a mapping; lists and mappings belong to the JSON report."""
    if not hasattr(facts, "items"):
        return {}
    return {
        str(key): str(value)
        for key, value in facts.items()
        if value is not None and isinstance(value, (str, int, float, bool))
    }


def _properties(parent: ET.Element, facts: dict[str, str]) -> None:
    if facts:
        holder = ET.SubElement(parent, "properties")
        for name, value in facts.items():
            ET.SubElement(holder, "property", name=_clean(name), value=_clean(value))


def _clean(text: str) -> str:
    return _FORBIDDEN.sub("\ufffd", text)
