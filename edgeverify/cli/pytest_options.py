"""The options of the pytest plugin, in two spellings, and who owns them in a given project.

Each option has the short spelling of the command line (``--model``) and an unmistakable one
(``--edgeverify-model``). pytest's parser gets only the unmistakable ones, and short ones in the
arguments are rewritten. A conftest that is found later, while tests are collected, may then
declare a ``--model`` of its own without a conflict.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from edgeverify.cli.options import add_selectors
from edgeverify.cli.pytest_marks import UNMISTAKABLE
from edgeverify.report.files import FORMATS

HOOKS = "edgeverify.cli.pytest_hooks"


def declare(parser: pytest.Parser, short: Iterable[str] = ()) -> None:
    """Declares every option by its unmistakable spelling, and by the given ``short`` ones.

    Options that pytest's parser already has are left as they are.
    """
    group = parser.getgroup("edgeverify", "edgeverify: model parity")
    for flags, attributes in _options():
        names = [*map(_long, flags), *(flag for flag in flags if flag in short)]
        if not _is_known(parser, names[0]):
            group.addoption(*names, **attributes)


def settle(
    config: pytest.Config,
    parser: pytest.Parser,
    args: list[str],
    unknown: Sequence[str],
    *,
    asked: bool,
) -> None:
    """Decides who owns each short spelling, rewrites edgeverify's, and registers its hooks.

    Args:
        config: pytest's, before the arguments are parsed for the last time.
        parser: pytest's, with the options of all plugins and initial conftests.
        args: the arguments with ``addopts``; changed in place, as pytest documents it.
        unknown: the arguments that no other plugin or conftest declares.
        asked: whether a mark or an unmistakable spelling requests edgeverify. If only short
            spellings request it, the run is the project's own as soon as the project owns one.

    Raises:
        pytest.UsageError: edgeverify is requested, and somebody else owns a short spelling.
    """
    used = [flag for flag in _short() if flag in _flags(args)]
    free = [flag for flag in used if flag in _flags(unknown)]
    if config.known_args_namespace.help:
        declare(parser, [flag for flag in _short() if not _is_known(parser, flag)])
        return
    if not asked and (not used or free != used):
        return
    for flag in used:
        if flag not in free and _long(flag) not in _flags(args):
            raise pytest.UsageError(
                f"{flag}: {_owner(config, flag)} declares this option, too, and the run asks for "
                f"edgeverify; write {_long(flag)} for edgeverify's own"
            )
    declare(parser)
    args[:] = _unmistakable(args, free)
    config.pluginmanager.import_plugin(HOOKS)


def paths(parser: pytest.Parser, args: Sequence[str]) -> list[str] | None:
    """Returns the arguments that are tests, not values of edgeverify's options; None if unclear.

    pytest searches these for conftests, and would take the folder of ``--cache`` for a test.
    """
    try:
        found: list[str] = parser.parse_known_args(_unmistakable(args, _short())).file_or_dir
    except pytest.UsageError:  # a conftest's switch is named like an option that takes a value
        return None
    return found


def given(args: Sequence[str]) -> list[str]:
    """Returns the spellings of edgeverify's options among the arguments, in their order."""
    spellings = {*_short(), *map(_long, _short())}
    return [flag for flag in (str(a).partition("=")[0] for a in args) if flag in spellings]


def _unmistakable(args: Sequence[str], short: Sequence[str]) -> list[str]:
    """Returns the arguments with the ``short`` spellings among them written in full."""
    written = []
    for argument in args:
        flag, equals, value = argument.partition("=")
        written.append(f"{_long(flag)}{equals}{value}" if flag in short else argument)
    return written


def _options() -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    """Yields the spellings and the argparse keywords of each option."""
    yield (
        ("--model",),
        {
            "dest": "edgeverify_model",
            "action": "append",
            "metavar": "MODEL",
            "help": "a registered name, package.module:ATTR or path/to/file.py:ATTR; repeatable; "
            "default with -m parity: all",
        },
    )
    yield (
        ("--golden-dir",),
        {
            "dest": "edgeverify_golden_dir",
            "metavar": "DIR",
            "help": "folder of the goldens (default: golden, in the project's root)",
        },
    )
    yield (
        ("--update-golden",),
        {
            "dest": "edgeverify_update_golden",
            "action": "store_true",
            "help": "rewrite the goldens from this run; the tests of what is rewritten fail",
        },
    )
    selectors: dict[tuple[str, ...], dict[str, Any]] = {}
    add_selectors(lambda flag, **attributes: selectors.update({(flag,): attributes}))
    yield from selectors.items()
    for name in FORMATS:
        # Not --html and --json, because pytest-html and other plugins have them.
        alias = ("--html-report",) if name == "html" else ()
        yield (
            (f"--parity-{name}", *alias),
            {
                "dest": f"edgeverify_report_{name}",
                "metavar": "FILE",
                "help": f"write a {name} report; of several models, to FILE with the model in its "
                "name",
            },
        )


def _short() -> list[str]:
    return [flag for flags, _ in _options() for flag in flags]


def _long(flag: str) -> str:
    return UNMISTAKABLE + flag.removeprefix("--")


def _flags(args: Sequence[str]) -> set[str]:
    """Returns each argument up to its ``=``, or the whole argument if it has none."""
    return {argument.partition("=")[0] for argument in args}


def _is_known(parser: pytest.Parser, flag: str) -> bool:
    """Whether an option of pytest, a plugin or a conftest has this spelling."""
    try:
        return flag not in parser.parse_known_and_unknown_args([flag])[1]
    except pytest.UsageError:  # it is known, and needs a value
        return True


def _owner(config: pytest.Config, flag: str) -> str:
    """Finds the conftest or plugin that declares an option by its text: pytest does not say."""
    for name, plugin in config.pluginmanager.list_name_plugin():
        hook = getattr(plugin, "pytest_addoption", None)
        try:
            text = inspect.getsource(hook) if hook else ""
        except (OSError, TypeError):
            continue
        if f'"{flag}"' in text or f"'{flag}'" in text:
            path = Path(name)
            if path.is_relative_to(config.rootpath):
                return str(path.relative_to(config.rootpath))
            return name
    return "another plugin or conftest"
