"""``edgeverify inspect FILE``: what a .tflite or .litertlm holds."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from edgeverify.core.errors import UsageError
from edgeverify.core.results import PASS

READ = "edgeverify.litert.inspect:inspect"


def add_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("file", metavar="FILE", type=Path)
    command.add_argument("--json", metavar="FILE", type=Path, help="write everything to a file")
    command.add_argument(
        "-v", "--verbose", action="store_true", help="show every tensor, weight and op"
    )


def check_file(path: Path) -> None:
    """Refuses what is no file.

    Raises:
        UsageError: it is missing, or a folder.
    """
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "there is no such file"
        raise UsageError(what, where=path, expected="a .tflite or .litertlm file")


def run(options: argparse.Namespace) -> str:
    """Reads the file in a child process and shows what is in it; always a pass."""
    from edgeverify.litert import contained
    from edgeverify.report.files import check_paths, write_atomically
    from edgeverify.report.inspection import print_inspection
    from edgeverify.report.terminal import console_for

    check_file(options.file)
    if options.json:
        check_paths({"--json": options.json})
    told = contained.call(READ, options.file)
    if options.json:
        write_atomically(options.json, json.dumps(told, indent=1) + "\n")
    print_inspection(told, console_for(sys.stdout), verbose=options.verbose)
    return PASS
