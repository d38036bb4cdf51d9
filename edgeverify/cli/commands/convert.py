"""``edgeverify convert MODEL --output DIR``: the files that a check would run."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from edgeverify.cli.frame import framed
from edgeverify.cli.options import add_selectors, parse
from edgeverify.core.choices import one_of
from edgeverify.core.errors import UsageError
from edgeverify.core.results import PASS
from edgeverify.legs.ports import check_name


def add_options(command: argparse.ArgumentParser) -> None:
    """Declares the options of the verb."""
    add = command.add_argument
    add("model", metavar="MODEL")
    add_selectors(add)
    add("--output", metavar="DIR", type=Path, required=True, help="folder of the files")
    add(
        "--format",
        metavar="F",
        default="tflite",
        help="tflite, or litertlm: the file with its tokenizer, for LiteRT-LM (default: tflite)",
    )


def run(options: argparse.Namespace) -> str:
    """Writes the files and prints their paths; always a pass.

    Raises:
        EdgeVerifyError: bad usage or bad input.
    """
    chosen = parse(options)
    one_of("--format", options.format, ("tflite", "litertlm"))
    _check_output(options.output)
    check_name(options.model, chosen.size)

    asked = {"output": options.output, "format": options.format, **chosen.arguments()}
    files = framed(
        "edgeverify.legs.export",
        lambda suite, loud: suite.convert_model(options.model, **asked, **loud),
        options,
    )
    for file in files:
        print(file)
    return PASS


def _check_output(folder: Path) -> None:
    """Refuses a folder that could not be made or written to, before anything is converted."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not there.is_dir():
        raise UsageError("is a file", where=f"--output {there}", expected="a folder")
    if not os.access(there, os.W_OK):
        raise UsageError(
            "cannot be written",
            where=f"--output {there}",
            expected="a writable folder",
            fix="change its permissions, or name another one",
        )
