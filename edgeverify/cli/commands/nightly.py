"""``edgeverify nightly``: a matrix of checks into one report, and the merging of shards."""

from __future__ import annotations

import argparse
from pathlib import Path

from edgeverify.cli.commands.golden import check_directory
from edgeverify.report.files import FORMATS, check_paths

OUTPUT = Path("nightly-report")


def add_options(command: argparse.ArgumentParser) -> None:
    """Declares the options of the verb."""
    add = command.add_argument
    add("--matrix", metavar="FILE", type=Path, help="TOML (default: every port's tiny model)")
    add("--output", metavar="DIR", type=Path, default=OUTPUT, help=f"folder (default: {OUTPUT})")
    add("--case", metavar="GLOB", action="append", default=[], help="these ids alone, repeatable")
    add("--changed-since", metavar="REF", help="only ports that a change since this commit touches")
    add("--shard", metavar="K/N", help="the k-th of n parts of the matrix")
    add("--jobs", metavar="N", help="processes (default: one for each core)")
    add(
        "--memory-budget", metavar="M", help="of all processes together, e.g. 8GiB (default: 75 %%)"
    )
    add("--golden", metavar="DIR", type=Path, help="compare float32 cases with goldens, too")
    add("--fresh", action="store_true", help="run finished cases again, too")
    add("--dry-run", action="store_true", help="show the cases and run none")
    add("--merge", metavar="DIR", type=Path, nargs="+", help="make one report of shards, run none")
    add("--cache", metavar="DIR", type=Path, help="folder of converted files and oracle traces")
    for name in FORMATS:
        add(f"--{name}", metavar="FILE", type=Path, help=f"write a {name} report there, too")


def run(options: argparse.Namespace) -> str:
    """Runs or merges, and shows the report; the outcome.

    Raises:
        EdgeVerifyError: bad usage or bad input, or a full disk.
    """
    paths = {name: getattr(options, name) for name in FORMATS if getattr(options, name)}
    check_paths({f"--{name}": path for name, path in paths.items()})
    if options.golden is not None:
        check_directory("--golden", options.golden)

    from edgeverify.suites.nightly import command

    return command.run(options, paths)
