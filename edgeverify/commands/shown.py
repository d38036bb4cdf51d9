"""What every command that ends in a report does with it."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from edgeverify.report.files import write_reports
from edgeverify.report.model import Report


def show(report: Report, paths: Mapping[str, Path], *, quiet: bool, verbose: bool) -> None:
    """Writes a report's files and prints it.

    Args:
        report: what was found.
        paths: format → file.
        quiet: print the outcome alone, if all passed.
        verbose: print every tap, too.
    """
    from edgeverify.report.terminal import console_for, print_outcome, print_report

    try:
        write_reports(report, paths)
    finally:  # a file that cannot be written must not cost the verdict of a long run
        console = console_for(sys.stdout)
        if quiet and report.passed:
            print_outcome(report, console)
        else:
            print_report(report, console, verbose=verbose)
