"""``edgeverify check MODEL``: reference, re-authored model and .tflite against each other."""

from __future__ import annotations

import argparse
from pathlib import Path

from edgeverify.cli.commands.golden import check_directory
from edgeverify.cli.commands.show_report import show
from edgeverify.cli.frame import framed
from edgeverify.cli.options import add_selectors, parse
from edgeverify.legs.ports import check_name
from edgeverify.report.files import FORMATS, check_paths


def add_options(command: argparse.ArgumentParser) -> None:
    """Declares the options of the verb."""
    add = command.add_argument
    add("model", metavar="MODEL")
    add_selectors(add)
    add(
        "--invariants",
        action="store_true",
        help="ask for the contracts of cache, RoPE, mask, padding and batch, too",
    )
    add("--golden", metavar="DIR", type=Path, help="compare with the goldens of a folder, too")
    for name in FORMATS:
        add(f"--{name}", metavar="FILE", type=Path, help=f"write a {name} report")
    add("--model-explorer", metavar="FILE", type=Path, help="write node data for Model Explorer")
    add("--history", metavar="DIR", type=Path, help="earlier JSON reports, for the HTML report")


def run(options: argparse.Namespace) -> str:
    """Checks the model and shows the report; its outcome.

    Raises:
        EdgeVerifyError: bad usage or bad input.
    """
    chosen = parse(options)
    paths = {name: getattr(options, name) for name in FORMATS if getattr(options, name)}
    if options.model_explorer:
        paths["model_explorer"] = options.model_explorer
    check_paths({f"--{name.replace('_', '-')}": path for name, path in paths.items()})
    check_name(options.model, chosen.size)
    if options.golden:
        check_directory("--golden", options.golden)

    from edgeverify.report.series import read_folder

    earlier = read_folder(options.history) if options.history else ()
    asked = {"invariants": options.invariants, "golden": options.golden, **chosen.arguments()}
    report = framed(
        "edgeverify.suites.check",
        lambda suite, loud: suite.verify(options.model, **asked, **loud),
        options,
    )
    show(report, paths, quiet=options.quiet, verbose=options.verbose, earlier=earlier)
    return report.outcome
