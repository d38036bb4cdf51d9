"""Earlier runs beside this one, and the page of a whole series."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from edgeverify.core.results import worst_outcome
from edgeverify.report.html.curves import sparkline
from edgeverify.report.html.parts import badge, document, table
from edgeverify.report.read import flat
from edgeverify.report.series import NIGHTLY, Entry, earlier_of, measured, subject
from edgeverify.report.words import number, plural

Point = tuple[str, str, float | None]


def trend(told: Mapping[str, Any], earlier: Sequence[Entry]) -> str:
    """The sparklines of one report's legs over the earlier runs and itself, or "".

    Args:
        told: the report as JSON has it.
        earlier: oldest first.
    """
    found = [*((e.time, old) for e, old in earlier_of(earlier, subject(told)))]
    if not found:
        return ""
    when = str((told.get("environment") or {}).get("time", "now"))
    return "<h2>Earlier runs</h2>" + _rows([*found, (when, told)])


def _rows(runs: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    names = list(dict.fromkeys(name for _, told in runs for name in measured(told)))
    outcomes = [str(told["outcome"]) for _, told in runs]
    rows = []
    for name in names:
        values = [measured(told).get(name) for _, told in runs]
        own = [str(flat(told.get("legs", {})).get(name, {}).get("outcome", "")) for _, told in runs]
        alt = f"{name}, ratio over allowed: " + ", ".join(number(value) for value in values)
        rows.append(
            f"<tr><th>{escape(name)}</th><td>{sparkline(values, own, alt)}</td>"
            f'<td class="n">{number(values[-1])}</td></tr>'
        )
    span = f"{plural(len(runs), 'run')} from {runs[0][0]} to {runs[-1][0]}"
    heads = ("leg", "worst ratio over allowed", "last")
    shown = table(heads, rows) if rows else ""
    last = "".join(badge(outcome) + " " for outcome in outcomes[-10:])
    return f"<p class='muted'>{escape(span)}; the last ones: {last}</p>{shown}"


def render_series(entries: Sequence[Entry]) -> str:
    """The page of a series: the newest outcome of each subject first, then its curve."""
    subjects: dict[str, list[tuple[str, Mapping[str, Any]]]] = {}
    for entry in entries:
        for case, told in entry.cases.items():
            # A night has several cases of a model, one for each recipe.
            name = case if entry.kind == NIGHTLY else subject(told)
            subjects.setdefault(name, []).append((entry.time, told))
    newest = worst_outcome([str(runs[-1][1]["outcome"]) for runs in subjects.values()])
    parts = [
        f'<div class="outcome {newest}"><div class="verdict">{badge(newest)}</div>'
        f'<p class="where">{plural(len(entries), "report")} of'
        f" {plural(len(subjects), 'subject')}, each at its newest</p></div>"
    ]
    for name, runs in subjects.items():
        parts.append(f"<h2>{escape(name)} {badge(str(runs[-1][1]['outcome']))}</h2>")
        parts.append(_rows(runs))
    return document(f"{newest.upper()} history", parts)


def worst(told: Mapping[str, Any]) -> float | None:
    """The largest ratio over allowed of a report's legs; None without one."""
    values = [value for value in measured(told).values() if not math.isnan(value)]
    return max(values, default=None)
