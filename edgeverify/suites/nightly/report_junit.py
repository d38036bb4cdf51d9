"""A nightly run as JUnit XML: one testcase per case, its ratios as properties."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgeverify.core.results import UNCHECKED
from edgeverify.report.junit_xml import JunitCase, JunitSuite
from edgeverify.report.junit_xml import document as xml
from edgeverify.suites.nightly.report_text import case_line, legs, reason

NAME = "edgeverify.suites.nightly"


def render(document: Mapping[str, Any]) -> str:
    """The XML document, with a suite for each model."""
    by_model: dict[str, list[JunitCase]] = {}
    for name, report in document["cases"].items():
        model = name.partition(".")[0]
        by_model.setdefault(model, []).append(_case(model, name, report))
    suites = [
        JunitSuite(f"{NAME}.{model}", cases, sum(case.seconds or 0.0 for case in cases))
        for model, cases in by_model.items()
    ]
    none = JunitCase("nightly", "nightly", UNCHECKED, "there is no case")
    return xml("edgeverify nightly", suites or [JunitSuite(NAME, [none], 0.0)])


def _case(model: str, name: str, report: Mapping[str, Any]) -> JunitCase:
    facts = {"outcome": report["outcome"]}
    for leg, found in legs(report):
        facts[f"{leg}.outcome"] = found["outcome"]
        worst, allowed = found.get("worst") or {}, found.get("threshold") or {}
        for ratio, limit in (("error_ratio", "rms"), ("row_ratio", "row")):
            if worst.get(ratio) is not None:
                facts[f"{leg}.{ratio}"] = worst[ratio]
                facts[f"{leg}.{ratio}_allowed"] = allowed.get(limit)
    said = [case_line(name, report), *(finding["message"] for finding in report["findings"])]
    said += [line for golden in report.get("goldens", ()) for line in golden["lines"]]
    return JunitCase(
        f"nightly.{model}",
        name,
        report["outcome"],
        "\n".join(said),
        reason(report),
        facts,
        float(report.get("nightly", {}).get("seconds") or 0.0),
    )
