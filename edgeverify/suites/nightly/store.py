"""Stores a nightly run in a folder: the plan, and each finished case as one complete file.

The files are ``plan.json``, ``cases/{id}.json`` (a report, with the facts of its run under
``nightly``), ``cases/{id}.html`` and ``nightly.json``. Each file is complete or absent, so a run
that was killed can be resumed.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edgeverify.core.errors import UsageError
from edgeverify.core.store import entries
from edgeverify.core.store.locks import locked
from edgeverify.report.files import write_atomically

PLAN, DOCUMENT, CASES = "plan.json", "nightly.json", "cases"
_LOCK = ".lock"


@contextmanager
def opened(folder: Path) -> Iterator[None]:
    """Makes the folder and locks it against other runs.

    Raises:
        UsageError: another run uses it, or it cannot be made.
        DiskFullError: there is no room for it.
    """
    with entries.full_disk_told(folder):
        (folder / CASES).mkdir(parents=True, exist_ok=True)
        lock = folder / _LOCK
        with locked(lock, wait=False) as held:
            if not held:
                raise UsageError(
                    "another run works in it",
                    where=f"--output {folder}",
                    expected="a folder for each run",
                    fix="wait for it to end, or name another folder",
                )
            for left in (*folder.glob(".*.tmp"), *(folder / CASES).glob(".*.tmp")):
                left.unlink(missing_ok=True)
            yield


def finished(folder: Path, name: str, key: str) -> dict[str, Any] | None:
    """Returns the report of a case if this same code, with these same versions, finished it.

    A case whose process ended without a verdict is not finished.
    """
    found = read_case(folder, name)
    facts = {} if found is None else found.get("nightly", {})
    done = facts.get("key") == key and facts.get("ended") is None
    return found if done else None


def read_case(folder: Path, name: str) -> dict[str, Any] | None:
    """Returns the report of a case, whatever code made it; None if there is none."""
    try:
        found = json.loads((folder / CASES / f"{name}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and "outcome" in found else None


def write_case(folder: Path, name: str, report: Mapping[str, Any]) -> None:
    """Writes the report of a finished case.

    Raises:
        DiskFullError: there is no room.
    """
    _write(folder / CASES / f"{name}.json", report)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a document atomically; raises what ``write_case`` raises."""
    _write(path, content)


def forget(folder: Path, name: str) -> None:
    """Removes the files of a case, so that no old report is taken for its result."""
    for suffix in (".json", ".html"):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(folder / CASES / f"{name}{suffix}")


def read_plan(folder: Path) -> dict[str, Any]:
    """Returns the plan in a folder.

    Raises:
        UsageError: it is not the folder of a nightly run.
    """
    path = folder / PLAN
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["kind"] == "nightly-plan" and found["schema"] == 1:
            return dict(found)
    except (OSError, ValueError, KeyError, TypeError) as error:
        told = f"{type(error).__name__}: {error}"
    else:
        told = f"kind {found['kind']!r}, schema {found['schema']!r}"
    raise UsageError(
        f"holds no nightly run ({told})", where=folder, expected=f"a folder with a {PLAN}"
    )


def _write(path: Path, content: Mapping[str, Any]) -> None:
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    with entries.full_disk_told(path.parent):
        write_atomically(path, text + "\n")
