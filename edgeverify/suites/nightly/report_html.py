"""A nightly run as one self-contained page: the outcome first, then a grid, then what is odd."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgeverify.core.results import PASS
from edgeverify.report.html.parts import rendered
from edgeverify.suites.nightly.report_text import grid, headline, legs, reason


def render(document: Mapping[str, Any], *, pages: str | None = None) -> str:
    """The page as HTML.

    Args:
        document: of the run.
        pages: folder, relative to the page, with a page for each case; no links if None.
    """
    columns, rows = grid(document)
    cases = document["cases"]
    return rendered(
        "nightly.html.j2",
        package="edgeverify.suites.nightly",
        title=headline(document),
        document=document,
        pages=pages,
        columns=columns,
        rows=rows,
        odd=[(name, reason(of)) for name, of in cases.items() if of["outcome"] != PASS],
        cases=[(name, *_measured(report)) for name, report in cases.items()],
        facts_of=(
            ("Excluded", {out["id"]: out["reason"] for out in document["excluded"]}),
            ("Not the same for all", document["differing"]),
            ("Environment", document["environment"]),
        ),
    )


def _measured(report: Mapping[str, Any]) -> tuple[str, str, str]:
    """The worst ratio with its leg, the seconds, and the peak of memory in GiB."""
    facts = report.get("nightly", {})
    ratios = [
        (leg["worst"]["error_ratio"], kind)
        for kind, leg in legs(report)
        if leg.get("worst") and isinstance(leg["worst"]["error_ratio"], int | float)
    ]
    worst = max(ratios, default=None)
    told = "–" if worst is None else f"{worst[0]:.3g} ({worst[1]})"
    peak = facts.get("peak_memory")
    return told, _number(facts.get("seconds")), _number(peak and peak / 2**30)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"
