"""The folder of a nightly run: what was planned, and each finished case as one whole file.

``plan.json``, ``cases/{id}.json`` (a report, with the facts of its run under ``nightly``),
``cases/{id}.html``, ``nightly.json``. A file is there whole or not at all, so a run that is killed
is gone on with.
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
    """Makes the folder and holds it against other runs.

    Raises:
        UsageError: another run works in it, or it cannot be made.
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
    """The report of a case, if it was finished by this very code, with these very versions.

    One whose process ended without a verdict is not finished.
    """
    found = read_case(folder, name)
    facts = {} if found is None else found.get("nightly", {})
    done = facts.get("key") == key and facts.get("ended") is None
    return found if done else None


def read_case(folder: Path, name: str) -> dict[str, Any] | None:
    """The report of a case whatever it was made by; None where there is none."""
    try:
        found = json.loads((folder / CASES / f"{name}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and "outcome" in found else None


def write_case(folder: Path, name: str, report: Mapping[str, Any]) -> None:
    """Keeps a finished case.

    Raises:
        DiskFullError: there is no room.
    """
    _write(folder / CASES / f"{name}.json", report)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a document whole, or not at all; raises as ``write_case`` does."""
    _write(path, content)


def forget(folder: Path, name: str) -> None:
    """Removes what is kept of a case, so that nothing old is taken for its result."""
    for suffix in (".json", ".html"):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(folder / CASES / f"{name}{suffix}")


def read_plan(folder: Path) -> dict[str, Any]:
    """What was planned for a folder.

    Raises:
        UsageError: it is no folder of a nightly run.
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
