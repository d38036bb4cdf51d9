"""The command line. It reads options, calls ``edgeverify.suites.check`` and shows the report."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from edgeverify.cli.commands import (
    bench,
    cache,
    check_artifact,
    diff,
    evaluate,
    golden,
    history,
    inspect,
    nightly,
)
from edgeverify.cli.commands.show_report import show
from edgeverify.cli.options import add_selectors, parse
from edgeverify.core.choices import one_of
from edgeverify.core.errors import EdgeVerifyError, UsageError
from edgeverify.core.results import FAIL, PASS, UNCHECKED
from edgeverify.legs import selectors
from edgeverify.legs.ports import catalogue, check_name
from edgeverify.report.files import FORMATS, check_paths, write_atomically
from edgeverify.report.tables import padded

EXIT_CODES = {PASS: 0, FAIL: 1, UNCHECKED: 3}
EXIT_USAGE = 2
EXIT_INTERNAL = 70  # EX_SOFTWARE of sysexits.h: a fault of edgeverify itself
EXIT_PIPE = 141  # 128 + SIGPIPE
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells have it

EPILOG = """\
MODEL is a registered name (see "edgeverify list"), package.module:ATTR or path/to/file.py:ATTR.

exit status:
  0  all passed
  1  something failed
  2  bad usage or bad input
  3  nothing failed, but something could not be checked
 70  an error of edgeverify itself
130  interrupted
"""


class _Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, like every other bad input."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message, fix=f"see {self.prog} --help")


class _Version(argparse.Action):
    """Reads the version when it is asked for: it costs a look through the installed packages."""

    def __init__(self, option_strings: Sequence[str], dest: str, **_: Any) -> None:
        super().__init__(option_strings, dest, nargs=0, help="show the version and exit")

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from importlib.metadata import version

        print(f"edgeverify {version('edgeverify')}")
        parser.exit()


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        argv: the arguments without the program's name; those of the process by default.

    Returns:
        The exit status: see ``EPILOG``.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        options = _parser().parse_args(arguments)
        status: int = options.run(options)
        sys.stdout.flush()
        return status
    except EdgeVerifyError as error:
        if "--debug" in arguments:
            raise
        return _fail(str(error), EXIT_USAGE)
    except KeyboardInterrupt:
        return _fail("interrupted", EXIT_INTERRUPTED)
    except BrokenPipeError:
        # The reader left (``| head``). Python would complain once more when it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_PIPE
    except Exception as error:
        if "--debug" in arguments:
            raise
        told = " ".join(f"{type(error).__name__}: {error}".split())
        return _fail(
            f"unexpected {told}; this is a fault of edgeverify: please report it with the"
            " traceback that --debug shows",
            EXIT_INTERNAL,
        )


def _fail(line: str, status: int) -> int:
    print(f"edgeverify: error: {line}", file=sys.stderr)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="edgeverify",
        description="Says whether a model ported to LiteRT is still the Hugging Face original, "
        "and if not, where it stopped being so.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action=_Version)
    commands = parser.add_subparsers(
        title="commands", metavar="COMMAND", required=True, dest="command"
    )

    listed = _command(commands, "list", "list the registered models")
    listed.set_defaults(run=_list)

    check = _command(commands, "check", "compare reference, re-authored model and .tflite")
    _add_model_and_selectors(check)
    check.add_argument(
        "--invariants",
        action="store_true",
        help="ask for the contracts of cache, RoPE, mask, padding and batch, too",
    )
    check.add_argument(
        "--golden", metavar="DIR", type=Path, help="compare with the goldens of a folder, too"
    )
    for name in FORMATS:
        check.add_argument(f"--{name}", metavar="FILE", type=Path, help=f"write a {name} report")
    check.add_argument(
        "--model-explorer", metavar="FILE", type=Path, help="write node data for Model Explorer"
    )
    check.add_argument(
        "--history", metavar="DIR", type=Path, help="earlier JSON reports, for the HTML report"
    )
    check.set_defaults(run=_check)

    convert = _command(commands, "convert", "write the .tflite files that check would run")
    _add_model_and_selectors(convert)
    convert.add_argument(
        "--output", metavar="DIR", type=Path, required=True, help="folder of the files"
    )
    convert.add_argument(
        "--format",
        metavar="F",
        default="tflite",
        help="tflite, or litertlm: the file with its tokenizer, for LiteRT-LM (default: tflite)",
    )
    convert.set_defaults(run=_convert)

    inspect.add_options(_command(commands, "inspect", inspect.HELP))

    _add_verb(commands, "check-artifact", check_artifact)
    _add_verb(commands, "eval", evaluate)
    _add_verb(commands, "bench", bench)
    _add_verb(commands, "nightly", nightly)
    _add_verb(commands, "cache", cache)
    _add_verb(commands, "golden", golden)
    _add_verb(commands, "diff", diff)
    _add_verb(commands, "history", history)

    selftest = _command(commands, "selftest", "try the checks on faults that they must find")
    _add_selftest_options(selftest)
    selftest.set_defaults(run=_selftest)
    return parser


def _add_verb(commands: Any, name: str, verb: ModuleType) -> None:
    """A verb in a module of its own: ``HELP``, ``add_options``, and ``run`` → the outcome."""
    command = _command(commands, name, verb.HELP)
    verb.add_options(command)
    _add_loudness(command)
    command.set_defaults(run=lambda options: EXIT_CODES[verb.run(options)])


def _add_selftest_options(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("models", metavar="MODEL", nargs="*", help="registered names (default: all)")
    add("--fault", metavar="NAME", action="append", default=[], help="this fault, repeatable")
    add("--quick", action="store_true", help="every fault once, on one model that it applies to")
    add("--cache", metavar="DIR", type=Path, help="folder of converted files and oracle traces")
    add("--json", metavar="FILE", type=Path, help="write every run to a file")
    add("--markdown", metavar="FILE", type=Path, help="write the tables to a file")
    add("--jobs", metavar="N", type=int, choices=range(1, 65), help="processes (default: 2)")
    _add_loudness(command)


def _command(commands: Any, name: str, text: str) -> argparse.ArgumentParser:
    command = commands.add_parser(
        name,
        help=text,
        description=text[0].upper() + text[1:] + ".",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    command.add_argument("--debug", action="store_true", help="show tracebacks")
    return command


def _add_model_and_selectors(command: argparse.ArgumentParser) -> None:
    command.add_argument("model", metavar="MODEL")
    add_selectors(command.add_argument)
    _add_loudness(command)


def _add_loudness(command: argparse.ArgumentParser) -> None:
    loudness = command.add_mutually_exclusive_group()
    loudness.add_argument(
        "-v", "--verbose", action="store_true", help="show every tap, and the libraries' chatter"
    )
    loudness.add_argument(
        "-q", "--quiet", action="store_true", help="no progress; one line if all passed"
    )


def _list(options: argparse.Namespace) -> int:
    del options
    rows = [("MODEL", "SIZE", "HUB ID")]
    for name, entry in catalogue().items():
        for size in entry.sizes:
            default = " (default)" if size == entry.default_size else ""
            hub_id = entry.hub_ids.get(size, "none: seeded weights only")
            rows.append((name, f"{size}{default}", hub_id))
    print("\n".join(padded(rows)))
    return 0


def _check(options: argparse.Namespace) -> int:
    chosen = parse(options)
    paths = {name: getattr(options, name) for name in FORMATS if getattr(options, name)}
    if options.model_explorer:
        paths["model_explorer"] = options.model_explorer
    check_paths({f"--{name.replace('_', '-')}": path for name, path in paths.items()})
    check_name(options.model, chosen.size)
    if options.golden:
        golden.check_directory("--golden", options.golden)

    from edgeverify.cli import launch
    from edgeverify.report.progress import progress_for
    from edgeverify.report.series import read_folder

    earlier = read_folder(options.history) if options.history else ()
    report = launch.check(
        options.model,
        chosen,
        invariants=options.invariants,
        golden=options.golden,
        verbose=options.verbose,
        progress=progress_for(sys.stderr, quiet=options.quiet or options.verbose),
    )
    show(report, paths, quiet=options.quiet, verbose=options.verbose, earlier=earlier)
    return EXIT_CODES[report.outcome]


def _convert(options: argparse.Namespace) -> int:
    chosen = parse(options)
    selectors.one_of("--format", options.format, ("tflite", "litertlm"))
    _check_output(options.output)
    check_name(options.model, chosen.size)

    from edgeverify.cli import launch
    from edgeverify.report.progress import progress_for

    files = launch.convert(
        options.model,
        chosen,
        options.output,
        format=options.format,
        verbose=options.verbose,
        progress=progress_for(sys.stderr, quiet=options.quiet or options.verbose),
    )
    for file in files:
        print(file)
    return 0


def _selftest(options: argparse.Namespace) -> int:
    names = list(catalogue())
    models = [one_of("MODEL", name, names) for name in options.models] or names
    given = {"--json": options.json, "--markdown": options.markdown}
    check_paths({option: path for option, path in given.items() if path})

    from edgeverify.cli import launch
    from edgeverify.report.progress import progress_for
    from edgeverify.suites.selftest import tables as report

    result = launch.selftest(
        models,
        options.fault,
        quick=options.quick,
        cache=options.cache,
        workers=options.jobs,
        verbose=options.verbose,
        progress=progress_for(sys.stderr, quiet=options.quiet or options.verbose),
    )
    shown = report.lines(result)
    print("\n".join(shown[:1] if options.quiet and result.summary.passed else shown))
    if options.json:
        write_atomically(options.json, json.dumps(result.to_dict(), indent=1) + "\n")
    if options.markdown:
        write_atomically(options.markdown, report.markdown(result))
    return 0 if result.summary.passed else EXIT_CODES[FAIL]


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


if __name__ == "__main__":
    sys.exit(main())
