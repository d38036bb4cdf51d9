"""``edgeverify diff A.json B.json``: what changed between two reports."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("before", metavar="A.json", type=Path)
    command.add_argument("after", metavar="B.json", type=Path)


def run(options: argparse.Namespace) -> str:
    """Shows the difference; ``fail`` where something got worse.

    Raises:
        UsageError: a file is no report.
    """
    from edgeverify.report.diff import difference, outcome
    from edgeverify.report.diff_lines import lines
    from edgeverify.report.series import read

    changes = difference(read(options.before), read(options.after))
    told = lines(changes)
    print("\n".join(told[:1] if options.quiet else told))
    return outcome(changes)
