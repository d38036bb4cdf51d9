"""``edgeverify selftest``: the checks, tried on faults that they must find."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from edgeverify.core.choices import one_of
from edgeverify.core.results import FAIL, PASS
from edgeverify.legs.ports import catalogue
from edgeverify.report.files import check_paths, write_atomically


def add_options(command: argparse.ArgumentParser) -> None:
    """Declares the options of the verb."""
    add = command.add_argument
    add("models", metavar="MODEL", nargs="*", help="registered names (default: all)")
    add("--fault", metavar="NAME", action="append", default=[], help="this fault, repeatable")
    add("--quick", action="store_true", help="every fault once, on one model that it applies to")
    add("--cache", metavar="DIR", type=Path, help="folder of converted files and oracle traces")
    add("--json", metavar="FILE", type=Path, help="write every run to a file")
    add("--markdown", metavar="FILE", type=Path, help="write the tables to a file")
    add("--jobs", metavar="N", type=int, choices=range(1, 65), help="processes (default: 2)")


def run(options: argparse.Namespace) -> str:
    """Tries the faults and shows the tables; ``fail`` for a miss or a false alarm.

    Raises:
        EdgeVerifyError: bad usage.
    """
    names = list(catalogue())
    models = [one_of("MODEL", name, names) for name in options.models] or names
    given = {"--json": options.json, "--markdown": options.markdown}
    check_paths({option: path for option, path in given.items() if path})

    from edgeverify.cli import launch
    from edgeverify.report.progress import progress_for
    from edgeverify.suites.selftest import tables

    result = launch.selftest(
        models,
        options.fault,
        quick=options.quick,
        cache=options.cache,
        workers=options.jobs,
        verbose=options.verbose,
        progress=progress_for(sys.stderr, quiet=options.quiet or options.verbose),
    )
    shown = tables.lines(result)
    print("\n".join(shown[:1] if options.quiet and result.summary.passed else shown))
    if options.json:
        write_atomically(options.json, json.dumps(result.to_dict(), indent=1) + "\n")
    if options.markdown:
        write_atomically(options.markdown, tables.markdown(result))
    return PASS if result.summary.passed else FAIL
