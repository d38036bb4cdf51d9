"""A series of reports as text: one line for each report of each run, oldest first."""

from __future__ import annotations

from collections.abc import Sequence

from edgeverify.report.read import flat
from edgeverify.report.series import Entry, measured
from edgeverify.report.words import number


def lines(entries: Sequence[Entry]) -> list[str]:
    """Time, outcome, what it is of, and each leg's worst ratio over what is allowed."""
    rows = []
    for entry in entries:
        for name, told in entry.cases.items():
            found = measured(told)
            legs = flat(told.get("legs", {}))
            ratios = ", ".join(f"{leg} {number(found.get(leg))}" for leg in legs)
            rows.append((entry.time, str(told["outcome"]), name, ratios))
    rows.insert(0, ("time", "outcome", "of", "worst ratio over allowed"))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
