"""The difference of two reports as a table of text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from edgeverify.report.tables import padded
from edgeverify.report.words import left_out, plural

if TYPE_CHECKING:
    from edgeverify.report.diff import Change

MARKS = {"worse": "✗", "better": "✓", "changed": " "}
HEAD = ("", "where", "what", "before", "after")
# One faulty block changes the verdict of every tap after it.
LISTED = 40


def lines(changes: Sequence[Change]) -> list[str]:
    """A sentence, then the table; regressions first."""
    worse = sum(change.kind == "worse" for change in changes)
    told = [f"{plural(worse, 'regression')} among {plural(len(changes), 'difference')}"]
    rows = [HEAD]
    rows += [(MARKS[c.kind], c.place or "–", c.what, c.before, c.after) for c in changes[:LISTED]]
    if not changes:
        return ["no difference"]
    return [*told, *padded(rows), *left_out(len(changes), LISTED)]
