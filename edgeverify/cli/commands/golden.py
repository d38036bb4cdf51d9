"""``edgeverify golden``: what models give today, against what they gave when it was kept."""

from __future__ import annotations

import argparse
from pathlib import Path

from edgeverify.cli.commands.show_report import show
from edgeverify.cli.frame import framed
from edgeverify.cli.options import add_selectors, parse
from edgeverify.core.errors import UsageError
from edgeverify.core.results import Report, worst_outcome
from edgeverify.legs.ports import catalogue, check_name
from edgeverify.report.files import FORMATS, check_paths

DIRECTORY = Path("golden")
# A golden has steps of its own, holds every recipe's file, and is no matter of legs.
WITHOUT = (
    "--backend",
    "--decode-steps",
    "--prefill",
    "--profile",
    "--recipe",
    "--runtime",
)


def add_options(command: argparse.ArgumentParser) -> None:
    """Declares the options of the verb."""
    add = command.add_argument
    add("models", metavar="MODEL", nargs="*", help="default: all that are registered")
    add_selectors(add, without=WITHOUT)
    add(
        "--golden-dir",
        metavar="DIR",
        type=Path,
        default=DIRECTORY,
        help="folder of the goldens (default: golden)",
    )
    add(
        "--update-golden",
        action="store_true",
        help="write today's numbers in their place, and show what has changed",
    )
    for name in FORMATS:
        add(f"--{name}", metavar="FILE", type=Path, help=f"write a {name} report")


def check_directory(option: str, directory: Path) -> None:
    """Refuses what is no folder.

    Raises:
        UsageError: there is no such folder; one is not made, lest a misspelt one be filled.
    """
    if not directory.is_dir():
        what = "is no folder" if directory.exists() else "there is no such folder"
        raise UsageError(
            what, where=f"{option} {directory}", expected="the folder of the goldens",
            fix="name it, or make it first",
        )  # fmt: skip


def run(options: argparse.Namespace) -> str:
    """Compares each model and shows it; the worst outcome.

    Raises:
        EdgeVerifyError: bad usage or bad input.
    """
    chosen = parse(options)
    models = options.models or list(catalogue())
    paths = {name: getattr(options, name) for name in FORMATS if getattr(options, name)}
    if len(models) > 1 and paths:
        option = next(iter(paths))
        raise UsageError(
            f"one file cannot hold {len(models)} models",
            where=f"--{option}",
            fix="name one MODEL",
        )
    check_paths({f"--{name}": path for name, path in paths.items()})
    check_directory("--golden-dir", options.golden_dir)
    for model in models:
        check_name(model, chosen.size)

    asked = {"directory": options.golden_dir, "update": options.update_golden}

    def compare(model: str) -> Report:
        return framed(
            "edgeverify.suites.check",
            lambda suite, loud: suite.verify_goldens(model, chosen, **asked, **loud),
            options,
        )

    outcomes = []
    for model in models:
        report = compare(model)
        # What a rewriting has changed cannot be asked for again.
        all_of_it = options.verbose or options.update_golden
        show(report, paths, quiet=options.quiet, verbose=all_of_it)
        outcomes.append(report.outcome)
    return worst_outcome(outcomes)
