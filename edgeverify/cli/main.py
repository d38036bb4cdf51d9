"""The frame of the command line: it finds the verb, runs it, and gives the exit status."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any, NoReturn

from edgeverify.cli.commands import VERBS
from edgeverify.core.errors import EdgeVerifyError, UsageError

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
        options = _parser(arguments).parse_args(arguments)
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


def _parser(arguments: Sequence[str]) -> argparse.ArgumentParser:
    """The parser of these arguments: of other verbs than theirs it has the name and the help."""
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
    named = next((argument for argument in arguments if not argument.startswith("-")), None)
    for name, verb in VERBS.items():
        command = commands.add_parser(
            name,
            help=verb.help,
            description=verb.help[0].upper() + verb.help[1:] + ".",
            epilog=EPILOG,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        if name == named:
            _complete(command, name)
    return parser


def _complete(command: argparse.ArgumentParser, name: str) -> None:
    """Gives a verb its options and its ``run``, from its module."""
    verb = VERBS[name]
    module = import_module(f"edgeverify.cli.commands.{verb.module}")
    command.add_argument("--debug", action="store_true", help="show tracebacks")
    module.add_options(command)
    if verb.loudness:
        loudness = command.add_mutually_exclusive_group()
        loudness.add_argument(
            "-v",
            "--verbose",
            action="store_true",
            help="show every tap, and the libraries' chatter",
        )
        loudness.add_argument(
            "-q", "--quiet", action="store_true", help="no progress; one line if all passed"
        )
    command.set_defaults(run=lambda options: _status(module.run(options)))


def _status(outcome: str) -> int:
    from edgeverify.core.results import FAIL, PASS, UNCHECKED

    return {PASS: 0, FAIL: 1, UNCHECKED: 3}[outcome]


if __name__ == "__main__":
    sys.exit(main())
