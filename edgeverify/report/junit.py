"""The report as JUnit XML: one testcase per audit, and one per leg and step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgeverify.core.results import PASS, UNCHECKED, InvariantResult, Report
from edgeverify.report.junit_xml import JunitCase, JunitSuite, document
from edgeverify.report.steps import StepResult, failure_text, step_results
from edgeverify.report.words import invariant_lines, number


def render(report: Report) -> str:
    """The XML document."""
    model = f"{report.case.get('model', 'model')}.{report.case.get('size', '')}".rstrip(".")
    cases = [
        JunitCase(
            f"{model}.audits",
            name,
            audit.outcome,
            "" if audit.outcome == PASS else failure_text(report, name),
        )
        for name, audit in report.audits.items()
    ]
    cases += [
        JunitCase(
            f"{model}.{leg.name}",
            step.step or leg.name,
            step.outcome,
            "" if step.outcome == PASS else failure_text(report, leg.name, step.step),
            properties=_measured(step, leg.threshold),
        )
        for leg in report.legs.values()
        for step in step_results(leg)
    ]
    cases += [_of_invariant(model, result) for result in report.invariants]
    if not report.legs:
        cases.append(JunitCase(model, "check", UNCHECKED, "nothing was compared"))
    facts = {**_flat(report.case), **_flat(report.environment)}
    seconds = sum(report.timings.values())
    return document("edgeverify", [JunitSuite(f"edgeverify.{model}", cases, seconds, facts)])


def _of_invariant(model: str, result: InvariantResult) -> JunitCase:
    """One that does not apply is skipped: there is nothing to be green about."""
    return JunitCase(
        f"{model}.invariants",
        f"{result.invariant}[{result.implementation}]",
        result.outcome,
        "\n".join(invariant_lines(result)),
        properties={"outcome": result.outcome, "cases": result.examples},
    )


def _measured(step: StepResult, allowed: Mapping[str, float]) -> dict[str, Any]:
    facts: dict[str, Any] = {"outcome": step.outcome, "taps": len(step.taps)}
    for name, limit in (("error_ratio", "rms"), ("row_ratio", "row")):
        facts[name] = number(step.worst(name))
        facts[f"{name}_allowed"] = number(allowed.get(limit))
    return facts


def _flat(facts: Mapping[str, Any]) -> dict[str, str]:
    """The plain values of a mapping; lists and mappings belong to the JSON report."""
    return {
        str(key): str(value)
        for key, value in facts.items()
        if isinstance(value, (str, int, float, bool))
    }
