"""Earlier runs beside this one, and the page of a whole series."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from edgeverify.core.results import worst_outcome
from edgeverify.report.html.curves import sparkline
from edgeverify.report.html.parts import rendered
from edgeverify.report.read import flat
from edgeverify.report.series import NIGHTLY, Entry, earlier_of, measured, subject
from edgeverify.report.words import number, plural

Point = tuple[str, str, float | None]


def trend(told: Mapping[str, Any], earlier: Sequence[Entry]) -> dict[str, Any] | None:
    """One report's legs over the earlier runs and itself, for the template; None without any.

    Args:
        told: the report as JSON has it.
        earlier: oldest first.
    """
    found = [*((e.time, old) for e, old in earlier_of(earlier, subject(told)))]
    if not found:
        return None
    when = str((told.get("environment") or {}).get("time", "now"))
    return _of_runs([*found, (when, told)])


def _of_runs(runs: Sequence[tuple[str, Mapping[str, Any]]]) -> dict[str, Any]:
    names = list(dict.fromkeys(name for _, told in runs for name in measured(told)))
    legs = []
    for name in names:
        values = [measured(told).get(name) for _, told in runs]
        own = [str(flat(told.get("legs", {})).get(name, {}).get("outcome", "")) for _, told in runs]
        alt = f"{name}, ratio over allowed: " + ", ".join(number(value) for value in values)
        legs.append((name, sparkline(values, own, alt), values[-1]))
    return {
        "span": f"{plural(len(runs), 'run')} from {runs[0][0]} to {runs[-1][0]}",
        "outcomes": [str(told["outcome"]) for _, told in runs][-10:],
        "legs": legs,
    }


def render_series(entries: Sequence[Entry]) -> str:
    """The page of a series: the newest outcome of each subject first, then its curve."""
    subjects: dict[str, list[tuple[str, Mapping[str, Any]]]] = {}
    for entry in entries:
        for case, told in entry.cases.items():
            # A night has several cases of a model, one for each recipe.
            name = case if entry.kind == NIGHTLY else subject(told)
            subjects.setdefault(name, []).append((entry.time, told))
    newest = worst_outcome([str(runs[-1][1]["outcome"]) for runs in subjects.values()])
    return rendered(
        "series.html.j2",
        title=f"{newest.upper()} history",
        newest=newest,
        told=f"{plural(len(entries), 'report')} of {plural(len(subjects), 'subject')}, each at its"
        " newest",
        subjects=[(n, str(runs[-1][1]["outcome"]), _of_runs(runs)) for n, runs in subjects.items()],
    )


def worst(told: Mapping[str, Any]) -> float | None:
    """The largest ratio over allowed of a report's legs; None without one."""
    values = [value for value in measured(told).values() if not math.isnan(value)]
    return max(values, default=None)
