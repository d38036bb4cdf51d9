"""Shows a report, for every command that ends in one."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from edgeverify.core.results import Report
from edgeverify.report import summary
from edgeverify.report.files import write_reports
from edgeverify.report.json import to_dict
from edgeverify.report.series import Entry, subject


def show(
    report: Report,
    paths: Mapping[str, Path],
    *,
    quiet: bool,
    verbose: bool,
    earlier: Sequence[Entry] = (),
) -> None:
    """Writes a report's files and prints it.

    Args:
        report: the result of the check.
        paths: format → file.
        quiet: if all passed, print only the outcome.
        verbose: print every tap, too.
        earlier: reports of earlier runs, for the page.
    """
    from edgeverify.report.terminal import console_for, print_outcome, print_report

    try:
        write_reports(report, paths, earlier)
        told = to_dict(report)
        summary.append(summary.markdown({subject(told): told}))
    finally:  # a file that cannot be written must not lose the verdict of a long run
        console = console_for(sys.stdout)
        if quiet and report.passed:
            print_outcome(report, console)
        else:
            print_report(report, console, verbose=verbose)
