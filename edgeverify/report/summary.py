"""A GitHub job summary: short Markdown, appended to the file that the runner names."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgeverify.core.results import FAIL, PASS, UNCHECKED
from edgeverify.report.read import flat
from edgeverify.report.series import measured
from edgeverify.report.tables import code, escaped, piped
from edgeverify.report.words import listed, number, plural

VARIABLE = "GITHUB_STEP_SUMMARY"
MARKS = {PASS: "✅", FAIL: "❌", UNCHECKED: "⚠️"}


def markdown(reports: Mapping[str, Mapping[str, Any]]) -> str:
    """A table with a row for each leg, then each answer: cause, where and next.

    Args:
        reports: what each is of → the report as JSON has it.
    """
    outcomes = [str(told["outcome"]) for told in reports.values()]
    passed = sum(outcome == PASS for outcome in outcomes)
    told = [f"### edgeverify: {passed} of {plural(len(outcomes), 'report')} passed", ""]
    rows = [("of", "leg", "outcome", "worst ratio over allowed", "first diverging tap")]
    for name, report in reports.items():
        found = measured(report)
        rows.append((escaped(name), "**all**", _mark(report["outcome"]), "", ""))
        for leg, result in flat(report.get("legs", {})).items():
            first = result.get("first_divergence")
            tap = code(first["tap"]) if first else ""
            ratio = number(found.get(leg))
            rows.append(("", escaped(leg), _mark(result["outcome"]), ratio, tap))
    told += piped(rows, right=(3,))
    for name, report in reports.items():
        answer, findings = report.get("answer", {}), report.get("findings", ())
        said = [escaped(finding["message"]) for finding in findings]
        items = _answer(answer) if answer.get("cause") else listed(said)
        told += ["", f"**{escaped(name)}**", "", *(f"- {item}" for item in items)] if items else []
    return "\n".join(told) + "\n"


def append(text: str) -> None:
    """Adds to job's summary where ``$GITHUB_STEP_SUMMARY`` is set; it never costs the verdict."""
    path = os.environ.get(VARIABLE)
    if not path:
        return
    try:
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(text)
    except OSError:
        return


def _answer(answer: Mapping[str, Any]) -> list[str]:
    """Cause, where and next, an item each."""
    told = [f"{label}: {'; '.join(escaped(line) for line in answer[label])}"
            for label in ("cause", "where") if answer[label]]  # fmt: skip
    command = f" {code(answer['command'])}" if answer["command"] else ""
    return [*told, f"next: {escaped(answer['next'])}{command}"]


def _mark(outcome: object) -> str:
    return f"{MARKS.get(str(outcome), MARKS[UNCHECKED])} {outcome}"
