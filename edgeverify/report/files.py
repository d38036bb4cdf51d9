"""Report files: checked before the run, written whole after it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from edgeverify.core.errors import UsageError
from edgeverify.core.results import Report
from edgeverify.core.whole_file import whole_file

if TYPE_CHECKING:
    from edgeverify.report.series import Entry

FORMATS = ("json", "html", "junit")


def check_paths(paths: Mapping[str, Path]) -> None:
    """Refuses a report path that could not be written after the run.

    Args:
        paths: option, e.g. ``--json`` → the file.

    Raises:
        UsageError: the folder is missing or read-only, the path is a folder, or two options
            name one file.
    """
    seen: dict[Path, str] = {}
    for option, path in paths.items():
        where = f"{option} {path}"
        if path.is_dir():
            raise UsageError("is a folder", where=where, expected="a file name")
        if not path.parent.is_dir():
            raise UsageError(
                f"the folder {str(path.parent)!r} does not exist",
                where=where,
                expected="a file in a folder that exists",
                fix="make the folder first",
            )
        if not os.access(path.parent, os.W_OK):
            raise UsageError(f"the folder {str(path.parent)!r} cannot be written", where=where)
        other = seen.setdefault(path.resolve(), option)
        if other != option:
            raise UsageError(f"{other} names the same file", where=where, expected="two files")


def write_reports(report: Report, paths: Mapping[str, Path], earlier: Sequence[Entry] = ()) -> None:
    """Writes the report in each format asked for.

    Args:
        report: what came of the run.
        paths: format (of ``FORMATS``) → the file.
        earlier: reports of earlier runs, for the page.

    Raises:
        UsageError: a file could not be written.
    """
    for name, path in paths.items():
        given = (earlier,) if name == "html" else ()
        text = import_module(f"edgeverify.report.{name}").render(report, *given)
        try:
            write_atomically(path, text)
        except OSError as error:
            raise UsageError(f"cannot be written ({error.strerror})", where=path) from error


def write_atomically(path: Path, text: str) -> None:
    """Writes ``text`` so that ``path`` is either what it was or the whole new file."""
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
