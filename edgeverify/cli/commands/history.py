"""``edgeverify history DIR``: the series of reports in a folder, by time."""

from __future__ import annotations

import argparse
from pathlib import Path

from edgeverify.core.results import PASS
from edgeverify.report.files import check_paths, write_atomically


def add_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("folder", metavar="DIR", type=Path)
    command.add_argument("--html", metavar="FILE", type=Path, help="write the series as a page")


def run(options: argparse.Namespace) -> str:
    """Shows the series. It judges nothing: what is told is a pass, whatever was found then.

    Raises:
        UsageError: there is no report in the folder, or one of its files is none.
    """
    from edgeverify.core.errors import UsageError
    from edgeverify.report.html.trend import render_series
    from edgeverify.report.series import read_folder
    from edgeverify.report.series_lines import lines

    if options.html:
        check_paths({"--html": options.html})
    entries = read_folder(options.folder)
    if not entries:
        raise UsageError("has no report", where=options.folder, expected="files of --json")
    print("\n".join(lines(entries)))
    if options.html:
        write_atomically(options.html, render_series(entries))
    return PASS
