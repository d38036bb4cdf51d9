"""A nightly run in text: for the terminal, and as Markdown for GitHub's job summary.

All read the document that ``edgeverify.suites.nightly.document`` makes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from edgeverify.core.results import FAIL, PASS, UNCHECKED
from edgeverify.report.summary import MARKS as SIGNS
from edgeverify.report.tables import code, escaped, padded, piped
from edgeverify.report.words import listed

SHOWN = 40  # cases that did not pass; the JSON has them all
MARKS = {PASS: "pass", FAIL: "FAIL", UNCHECKED: "unchecked"}


def case_line(name: str, report: Mapping[str, Any]) -> str:
    """``FAIL gemma2.tiny.default.fp16 12.3 s: …`` in one line."""
    seconds = report.get("nightly", {}).get("seconds")
    took = "" if seconds is None else f" {seconds:.1f} s"
    why = "" if report["outcome"] == PASS else f": {reason(report)}"
    return f"{MARKS[report['outcome']]} {name}{took}{why}"


def reason(report: Mapping[str, Any]) -> str:
    """Why a case did not pass, in one sentence: of what has its outcome, the first."""
    # A runtime's leg says of a file no more than that its own leg has not passed.
    for leg, facts in sorted(legs(report), key=lambda found: found[0].startswith("runtime")):
        if facts["outcome"] == report["outcome"]:
            told = [f for f in report["findings"] if f["leg"] == leg]
            return f"{leg}: {' '.join((told[0]['message'] if told else facts['reason']).split())}"
    for golden in report.get("goldens", ()):
        if golden["outcome"] == report["outcome"]:
            return f"golden {golden['name']}: {' '.join(golden['lines'][0].split())}"
    return " ".join(report["findings"][0]["message"].split()) if report["findings"] else "no reason"


def legs(report: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every leg of a report with its name as a ``LegResult`` has it."""

    def unfold(name: str, found: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
        if isinstance(found.get("outcome"), str):
            yield name, found
            return
        for more, inner in found.items():
            yield from unfold(f"{name}:{more}", inner)

    for name, found in report.get("legs", {}).items():
        yield from unfold(name, found)


def counts(document: Mapping[str, Any]) -> dict[str, int]:
    """Outcome → number of cases."""
    outcomes = [report["outcome"] for report in document["cases"].values()]
    return {outcome: outcomes.count(outcome) for outcome in (PASS, FAIL, UNCHECKED)}


def headline(document: Mapping[str, Any]) -> str:
    """The outcome and the numbers in one line."""
    told = ", ".join(f"{number} {outcome}" for outcome, number in counts(document).items())
    parts = [f"{len(document['cases'])} cases: {told}"]
    if document["missing"]:
        parts.append(f"{len(document['missing'])} of them missing")
    if document["excluded"]:
        parts.append(f"{len(document['excluded'])} excluded by the matrix")
    if document["shard"]:
        parts.append(f"shard {document['shard']}")
    if document["seconds"] is not None:
        parts.append(f"{document['seconds']:.0f} s")
    return f"{document['outcome'].upper()} nightly · {' · '.join(parts)}"


def grid(document: Mapping[str, Any]) -> tuple[list[str], dict[str, dict[str, str]]]:
    """Recipes, in order, and row (model, size, layout) → recipe → outcome."""
    columns: dict[str, None] = {}
    rows: dict[str, dict[str, str]] = {}
    for name, report in document["cases"].items():
        row, _, recipe = name.rpartition(".")
        columns[recipe] = None
        rows.setdefault(row, {})[recipe] = report["outcome"]
    return list(columns), rows


def lines(document: Mapping[str, Any]) -> list[str]:
    """The report for a terminal; its first line is the headline."""
    columns, rows = grid(document)
    table = [["", *columns]]
    table += [
        [row, *(MARKS.get(cells.get(c, ""), "–") for c in columns)] for row, cells in rows.items()
    ]
    out = [headline(document), "", *padded(table)]
    odd = [(n, r) for n, r in document["cases"].items() if r["outcome"] != PASS]
    out += [""] if odd else []
    out += listed([case_line(name, report) for name, report in odd], SHOWN)
    out += [f"not the same for all: {name}: {', '.join(v)}" for name, v in _differing(document)]
    for why, names in _excluded(document).items():
        out.append(f"excluded: {len(names)} cases, {names[0]} …: {why}")
    return out


def markdown(document: Mapping[str, Any]) -> str:
    """The report for ``$GITHUB_STEP_SUMMARY``."""
    columns, rows = grid(document)
    out = [f"### {SIGNS[document['outcome']]} {headline(document)}", ""]
    table = [["", *columns]]
    table += [
        [code(row), *(SIGNS.get(cells.get(c, ""), "–") for c in columns)]
        for row, cells in rows.items()
    ]
    out += piped(table)
    odd = [(n, r) for n, r in document["cases"].items() if r["outcome"] != PASS]
    told = listed([escaped(case_line(name, report)) for name, report in odd], SHOWN)
    out += ["", *(f"- {line}" for line in told)]
    for why, names in _excluded(document).items():
        out.append(f"- excluded: {len(names)} cases: {escaped(why)}")
    return "\n".join(out) + "\n\n"


def _differing(document: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    return list(document["differing"].items())


def _excluded(document: Mapping[str, Any]) -> dict[str, list[str]]:
    by_reason: dict[str, list[str]] = {}
    for out in document["excluded"]:
        by_reason.setdefault(out["reason"], []).append(out["id"])
    return by_reason
