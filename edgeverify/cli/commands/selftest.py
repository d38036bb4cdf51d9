"""``edgeverify selftest``: the checks, tried on faults that they must find."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeverify.cli.frame import Loud, framed
from edgeverify.core.choices import one_of
from edgeverify.core.quiet import hush
from edgeverify.core.results import FAIL, PASS
from edgeverify.legs.ports import catalogue
from edgeverify.report.files import check_paths, write_atomically

if TYPE_CHECKING:
    from edgeverify.suites.selftest.matrix import Result


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

    from edgeverify.suites.selftest import tables

    def try_faults(suite: Any, loud: Loud) -> Result:
        jobs = suite.plan(
            models, suite.catalogue.choose(options.fault, models), quick=options.quick
        )
        workers = 1 if len(jobs) == 1 else options.jobs or suite.WORKERS
        given = {"cache": options.cache, "progress": loud["progress"]}
        return suite.run(jobs, workers=workers, prepare=hush, **given)

    result = framed("edgeverify.suites.selftest.matrix", try_faults, options)
    shown = tables.lines(result)
    print("\n".join(shown[:1] if options.quiet and result.summary.passed else shown))
    if options.json:
        write_atomically(options.json, json.dumps(result.to_dict(), indent=1) + "\n")
    if options.markdown:
        write_atomically(options.markdown, tables.markdown(result))
    return PASS if result.summary.passed else FAIL
