"""The report on a terminal: the answer and, where it is asked for, all that was found."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from edgeverify.core.results import (
    FAIL,
    NOT_APPLICABLE,
    PASS,
    UNCHECKED,
    LegResult,
    Report,
    worst_outcome,
)
from edgeverify.report.answer import answer_of
from edgeverify.report.answer_text import MARKS, WIDTH, answer_lines, outcome_lines
from edgeverify.report.tables import titled
from edgeverify.report.words import (
    audit_lines,
    case_line,
    continuation_lines,
    golden_lines,
    invariant_cells,
    invariant_lines,
    invariants_line,
    leg_lines,
    loose_findings,
    number,
    plural,
    scientific,
)

STYLES = {PASS: "bold green", FAIL: "bold red", UNCHECKED: "bold yellow"}
LABELS = ("cause", "where", "next ")
# A pipe has no width: what ``-v`` adds is not broken, so that a search by line finds whole lines.
PIPED_WIDTH = 500
# Below this the leg's name and outcome get a line of their own.
NARROW = 80


def console_for(stream: object, *, color: bool | None = None) -> Console:
    """A console on ``stream``: no colour and no line breaks where it is not a terminal."""
    console = Console(file=stream, highlight=False, no_color=None if color is None else not color)  # type: ignore[arg-type]
    if not console.is_terminal:
        console.width = PIPED_WIDTH
    return console


def print_report(report: Report, console: Console, *, verbose: bool = False) -> None:
    """Prints the answer; with ``verbose``, all that was found and every tap of every leg, too."""
    for line in answer_lines(answer_of(report), width_of(console)):
        console.print(_coloured(line, report.outcome), soft_wrap=True)
    if verbose:
        console.print()
        _print_all(report, console)


def print_outcome(report: Report, console: Console) -> None:
    """Prints the outcome and the case alone."""
    for line in outcome_lines(answer_of(report), width_of(console)):
        console.print(_coloured(line, report.outcome), soft_wrap=True)


def width_of(console: Console) -> int:
    """The answer's: that of a pipe is a terminal's, too, as one fact is on one line."""
    return min(console.width, WIDTH)


def _coloured(line: str, outcome: str) -> Text:
    """The outcome, the marks and the labels have colours."""
    text = Text(line)
    if line.startswith(outcome.upper()):
        text.stylize(STYLES[outcome], 0, len(outcome))
    for kind, mark in MARKS.items():
        if line.startswith(mark):
            text.stylize(STYLES[kind], 0, 1)
    if line.startswith(LABELS):
        text.stylize("bold", 0, 5)
    return text


def _print_all(report: Report, console: Console) -> None:
    """Everything that was found, part by part."""
    _print_indented(console, Text("case: "), case_line(report.case))
    for name, audit in report.audits.items():
        _print_part(report, name, audit.outcome, audit_lines(audit), console)
    for leg in report.legs.values():
        _print_part(report, leg.name, leg.outcome, leg_lines(leg, report.findings), console)
    for result in report.goldens:
        _print_part(report, "golden", result.outcome, golden_lines(result), console)
    if report.invariants:
        _print_invariants(report, console)
    loose = [finding.message for finding in loose_findings(report)]
    for line in [*continuation_lines(report.case), *loose]:
        _print_indented(console, Text("  "), line)
    for leg in report.legs.values():
        console.print()
        console.print(_tap_table(leg), crop=False)
    if report.invariants:
        console.print()
        console.print(_invariants_table(report), crop=False)
    _print_facts(report, console)


def _print_part(
    report: Report, name: str, outcome: str, lines: list[str], console: Console
) -> None:
    """Prints an audit or a leg: its name and outcome before its first line."""
    width = max(len(name) for name in ("golden", *report.legs, *report.audits)) + 2
    head = Text.assemble(f"  {name:{width}}", (f"{outcome:10}", STYLES[outcome]))
    if console.width < NARROW:
        console.print(head)
        head = Text("    ")
    for line in lines:
        _print_indented(console, head, line)
        head = Text(" " * len(head))


def _print_invariants(report: Report, console: Console) -> None:
    asked = [r.outcome for r in report.invariants if r.outcome != NOT_APPLICABLE]
    outcome = worst_outcome(asked)
    head = Text.assemble(f"  {'invariants':12}", (f"{outcome:10}", STYLES[outcome]))
    _print_indented(console, head, invariants_line(report.invariants))
    for result in report.invariants:
        if result.outcome in (FAIL, UNCHECKED):
            for line in invariant_lines(result):
                # Unbroken, so that the reproduction can be copied.
                console.print(Text(f"    {line}"), soft_wrap=True)


def _print_indented(console: Console, head: Text, line: str) -> None:
    """Prints ``line`` after ``head``; what does not fit goes below, under its beginning."""
    for part in Text(line).wrap(console, max(console.width - len(head), 20)):
        part.rstrip()
        console.print(head + part)
        head = Text(" " * len(head))


def _tap_table(leg: LegResult) -> Table:
    allowed = f"allowed {number(leg.threshold.get('rms'))}, row {number(leg.threshold.get('row'))}"
    title = f"{leg.name}: {leg.outcome} · {plural(len(leg.taps), 'tap')} · {allowed}"
    heads = ("tap", "error", "floor", "ratio", "row", "isolated", "outcome")
    table = titled(title, heads, range(1, 6), whole=range(6))
    for tap in leg.taps:
        outcome = Text(tap.outcome, style=STYLES[tap.outcome] if tap.outcome != PASS else "green")
        if tap.reason:
            outcome.append(f" {tap.reason}", style="default")
        table.add_row(
            Text(tap.tap),
            scientific(tap.error),
            scientific(tap.floor),
            number(tap.error_ratio),
            number(tap.row_ratio),
            number(tap.isolated_ratio),
            outcome,
        )
    return table


def _invariants_table(report: Report) -> Table:
    """Invariant × implementation: how many cases passed, or the outcome."""
    columns = list(dict.fromkeys(result.implementation for result in report.invariants))
    every = range(1 + len(columns))
    table = titled("invariants: cases", ("invariant", *columns), every[1:], whole=every)
    cells = invariant_cells(report.invariants)
    for name in dict.fromkeys(result.invariant for result in report.invariants):
        table.add_row(name, *(cells.get((name, column), "–") for column in columns))
    return table


def _print_facts(report: Report, console: Console) -> None:
    for title, facts in (("environment", report.environment), ("seconds", report.timings)):
        if facts:
            shown = ", ".join(
                f"{key} {value:.1f}" if isinstance(value, float) else f"{key} {value}"
                for key, value in facts.items()
            )
            console.print()
            console.print(Text(f"{title}: {shown}"))
