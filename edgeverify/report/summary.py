"""A GitHub job summary: short Markdown, appended to the file that the runner names."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgeverify.report.read import flat
from edgeverify.report.series import measured
from edgeverify.report.words import LISTED, number, plural

VARIABLE = "GITHUB_STEP_SUMMARY"
MARKS = {"pass": "✅", "fail": "❌"}


def markdown(reports: Mapping[str, Mapping[str, Any]]) -> str:
    """A table with a row for each leg, then each answer: cause, where and next.

    Args:
        reports: what each is of → the report as JSON has it.
    """
    outcomes = [str(told["outcome"]) for told in reports.values()]
    passed = sum(outcome == "pass" for outcome in outcomes)
    told = [f"### edgeverify: {passed} of {plural(len(outcomes), 'report')} passed", ""]
    told += ["| of | leg | outcome | worst ratio over allowed | first diverging tap |",
             "|---|---|---|---:|---|"]  # fmt: skip
    for name, report in reports.items():
        found = measured(report)
        told.append(f"| {_cell(name)} | **all** | {_mark(report['outcome'])} | | |")
        for leg, result in flat(report.get("legs", {})).items():
            first = result.get("first_divergence")
            tap = f"`{_cell(first['tap'])}`" if first else ""
            told.append(f"| | {_cell(leg)} | {_mark(result['outcome'])} |"
                        f" {number(found.get(leg))} | {tap} |")  # fmt: skip
    for name, report in reports.items():
        answer, findings = report.get("answer", {}), report.get("findings", ())
        if answer.get("cause"):
            told += ["", f"**{_cell(name)}**", "", *_answer(answer)]
        elif findings:
            told += ["", f"**{_cell(name)}**", ""]
            told += [f"- {_cell(finding['message'])}" for finding in findings[:LISTED]]
            more = len(findings) - LISTED
            told += [f"- and {more} more"] if more > 0 else []
    return "\n".join(told) + "\n"


def append(reports: Mapping[str, Mapping[str, Any]]) -> None:
    """Adds the summary where ``$GITHUB_STEP_SUMMARY`` is set; it never costs the verdict."""
    path = os.environ.get(VARIABLE)
    if not path:
        return
    try:
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(markdown(reports))
    except OSError:
        return


def _answer(answer: Mapping[str, Any]) -> list[str]:
    """Cause, where and next, an item each."""
    told = [f"- {label}: {'; '.join(_cell(line) for line in answer[label])}"
            for label in ("cause", "where") if answer[label]]  # fmt: skip
    command = f" `{answer['command']}`" if answer["command"] else ""
    return [*told, f"- next: {_cell(answer['next'])}{command}"]


def _mark(outcome: object) -> str:
    return f"{MARKS.get(str(outcome), '⚠️')} {outcome}"


def _cell(text: object) -> str:
    """Text that cannot leave its cell, nor be read as HTML."""
    plain = " ".join(str(text).split()).replace("&", "&amp;").replace("<", "&lt;")
    return plain.replace("|", "\\|")
