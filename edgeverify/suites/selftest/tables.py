"""The result of a self-test, on a terminal and as Markdown."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from edgeverify.report.tables import padded, piped
from edgeverify.suites.selftest.rows import (
    AUDITS,
    DETECTED,
    FALSE_ALARM,
    MISSED,
    UNCHANGED,
    Row,
    Summary,
    summarise,
)

if TYPE_CHECKING:
    from edgeverify.suites.selftest.matrix import Result

COMMAND = "edgeverify selftest --markdown docs/selftest.md"


def lines(result: Result) -> list[str]:
    """What the terminal shows: the figures, a table by area, and each row that is wrong."""
    summary = result.summary
    head = "PASS" if summary.passed else "FAIL"
    ports = len({row.port for row in result.rows})
    shown = [
        f"{head}  self-test · {len(names(result.rows))} faults and harmless changes on {ports} "
        f"ports · {len(result.rows)} runs in {result.seconds:.0f} s",
        *(f"  {text}" for text in figures(summary)),
        "",
        *padded(_table(result.rows), indent="  "),
    ]
    wrong = [complaint(row) for row in result.rows if row.wrong]
    wrong += [misdiagnosis(row) for row in result.rows if row.diagnosis_wrong]
    return [*shown, *([""] if wrong else []), *wrong]


def figures(summary: Summary) -> list[str]:
    """One line for each figure."""
    detected = summary.detected
    text = [
        f"detected      {detected} of {summary.faults} ({summary.missed} missed)",
        f"false alarms  {summary.false_alarms} of {summary.harmless}",
        f"blame         leg right {_share(summary.leg_right, detected)}, "
        f"block right {_share(summary.block_right, detected)}, "
        f"sublayer right {_share(summary.sublayer_right, detected)}",
        f"ratio         smallest among the detected {_number(summary.smallest_ratio)} "
        f"({_number(summary.smallest_detected)} times what is allowed), "
        f"largest among the clean {_number(summary.largest_ratio)} "
        f"({_number(summary.largest_clean)} times)",
    ]
    if summary.diagnosed:
        right = _share(summary.diagnosis_right, summary.diagnosed)
        wrong = _share(summary.diagnosis_wrong, summary.diagnosed)
        text.append(
            f"diagnosis     of {summary.diagnosed} faults of ports: true cause named {right}, "
            f"a wrong one {wrong}, none for the rest"
        )
    return text


def complaint(row: Row) -> str:
    """One line on a miss, a false alarm or a wrong blame."""
    subject = f"{row.fault} on {row.port}"
    if row.verdict == MISSED:
        worst = "" if row.excess is None else f"; largest ratio {_number(row.excess)} of the limit"
        return f"missed: {subject} must show at {', '.join(row.expected)}{worst}"
    if row.verdict == FALSE_ALARM:
        expected = ", ".join(row.expected) or "nothing"
        message = row.first or f"told of {', '.join(row.named) or 'nothing'}"
        return f"false alarm: {subject} must tell of {expected}; {message}"
    return (
        f"wrong blame: {subject} must show at {row.expected_leg} {', '.join(row.expected)}; "
        f"blamed was {row.leg} {', '.join(row.named)}, first at {row.first}"
    )


def misdiagnosis(row: Row) -> str:
    """One line on a cause that was named and is not true."""
    named = ", ".join(row.diagnosis or ())
    return f"wrong cause: {row.fault} on {row.port} is {row.cause}; named was {named}"


def markdown(result: Result) -> str:
    """The page of the documentation: figures, a table by area, the faults one by one."""
    text = [
        "# What the checks find",
        "",
        f"Made by `{COMMAND}` in {result.seconds:.0f} s; do not edit.",
        "",
        *(f"- {' '.join(line.split())}" for line in figures(result.summary)),
        "",
        *piped(_table(result.rows)),
        "",
        *_details(result.rows),
    ]
    return "\n".join(text) + "\n"


def names(rows: Sequence[Row]) -> list[str]:
    """The faults and changes of the rows, each once, in order."""
    return list(dict.fromkeys(row.fault for row in rows if row.fault != UNCHANGED))


def _details(rows: Sequence[Row]) -> list[str]:
    from edgeverify.suites.selftest.faults.catalogue import FAULTS

    text = []
    ran = set(names(rows))
    for title, chosen in (
        ("Faults", [f for f in FAULTS if not f.harmless]),
        ("Harmless changes, which must not be reported", [f for f in FAULTS if f.harmless]),
    ):
        table = [("name", "what", "shows at", "ports", "smallest ratio")]
        for fault in [f for f in chosen if f.name in ran]:
            own = [row for row in rows if row.fault == fault.name]
            source = f" ({fault.source})" if fault.source else ""
            reason = fault.harmless or fault.unseen
            what = f"{fault.description}{source}" + (f" *{reason}*" if reason else "")
            where = ", ".join(f"`{tap}`" for tap in fault.where) or "nowhere"
            ratio = min((r.ratio for r in own if r.ratio is not None), default=None)
            if fault.harmless:
                ratio = max((r.ratio for r in own if r.ratio is not None), default=None)
            ports = "all" if len(own) == 7 else ", ".join(row.port for row in own)
            table.append((f"`{fault.name}`", what, where, ports, _number(ratio)))
        text += [f"## {title}", "", *piped(table), ""]
    return text


def _table(rows: Sequence[Row]) -> list[list[str]]:
    head = ["area", "faults", "runs", "detected", "leg", "block", "sublayer", "smallest ratio"]
    head += ["harmless", "false alarms", "largest clean"]
    table = [head]
    areas = list(dict.fromkeys(row.area for row in rows))
    for area in [*areas, None]:
        chosen = [row for row in rows if area in (None, row.area)]
        total = summarise(chosen)
        detected = total.detected
        own = {r.fault for r in chosen if r.verdict in (DETECTED, MISSED, AUDITS)}
        table.append(
            [
                area or "all",
                str(len(own)),
                str(total.faults),
                _share(detected, total.faults),
                _share(total.leg_right, detected),
                _share(total.block_right, detected),
                _share(total.sublayer_right, detected),
                _number(total.smallest_ratio),
                str(total.harmless),
                str(total.false_alarms),
                _number(total.largest_ratio),
            ]
        )
    return table


def _share(part: int, whole: int) -> str:
    return "–" if whole == 0 else f"{100 * part / whole:.3g} %"


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    if not math.isfinite(value):
        return "∞"
    return f"{value:.3g}" if value < 1000 else f"{value:.0e}".replace("e+0", "e")
