"""A series of reports as text: one line for each run, oldest first."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from edgeverify.core.results import PASS
from edgeverify.report.read import flat
from edgeverify.report.series import NIGHTLY, Entry, measured
from edgeverify.report.tables import padded
from edgeverify.report.words import number, plural


def lines(entries: Sequence[Entry]) -> list[str]:
    """Time, outcome, what it is of, and each leg's worst ratio over what is allowed.

    Of a nightly run its cases are counted, with the worst ratio of each kind of leg; those that are
    no pass, or that were none in the nightly run before, have a line of their own.
    """
    rows = [("time", "outcome", "of", "worst ratio over allowed")]
    before: Mapping[str, Mapping[str, Any]] = {}
    for entry in entries:
        if entry.kind != NIGHTLY:
            rows += [_row(entry.time, name, told) for name, told in entry.cases.items()]
            continue
        rows.append(_night(entry))
        rows += _odd(entry, before)
        before = entry.cases
    return padded(rows)


def _row(time: str, name: str, told: Mapping[str, Any]) -> tuple[str, str, str, str]:
    found = measured(told)
    legs = flat(told.get("legs", {}))
    ratios = ", ".join(f"{leg} {number(found.get(leg))}" for leg in legs)
    return time, str(told["outcome"]), name, ratios


def _night(entry: Entry) -> tuple[str, str, str, str]:
    counted = Counter(str(told["outcome"]) for told in entry.cases.values())
    told = ", ".join(f"{count} {outcome}" for outcome, count in counted.most_common())
    worst: dict[str, float] = {}
    for case in entry.cases.values():
        for leg, value in measured(case).items():
            kind = leg.partition(":")[0]
            value = math.inf if math.isnan(value) else value
            worst[kind] = max(worst.get(kind, 0.0), value)
    ratios = ", ".join(f"{kind} {number(value)}" for kind, value in worst.items())
    cases = plural(len(entry.cases), "case")
    return entry.time, entry.outcome, f"nightly run of {cases}: {told or 'none'}", ratios


def _odd(
    entry: Entry, before: Mapping[str, Mapping[str, Any]]
) -> Iterator[tuple[str, str, str, str]]:
    for name, told in entry.cases.items():
        was = before.get(name, {}).get("outcome", PASS)
        if told["outcome"] != PASS or was != PASS:
            time, outcome, _, ratios = _row("", name, told)
            now = f"  {name}" if was == outcome else f"  {name} (was {was})"
            yield time, outcome, now, ratios
    for name in before.keys() - entry.cases.keys():
        yield "", "–", f"  {name} (is gone)", ""
