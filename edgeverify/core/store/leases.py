"""Records which process uses which entry of the cache, so that no used entry is removed.

All of it is in ``{root}/.use``. Each entry has a *note*, which contains the entry's digest and
whose time of change is the entry's last use. Each process has a *lease*, a file that is locked for
as long as the process lives. If an entry was last used before the oldest living process began, no
process uses it. Using and removing an entry both pass a common gate, so that neither happens
between the other's two steps.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgeverify.core.store import locks
from edgeverify.core.store.locks import locked
from edgeverify.core.whole_file import whole_file

FOLDER = ".use"
# Without locks it is unknown which processes live: an entry used this recently may be in use.
WITHOUT_LOCKS = 86400.0
_leases: dict[Path, int] = {}


def hit(root: Path, entry: Path) -> bool:
    """Checks whether the entry exists; if so, this process uses it from now on.

    A cache that cannot be written is only read: nothing can be removed from it either.
    """
    if not entry.exists():
        return False
    try:
        begin(root)
        with _gate(root, alone=False):
            if not entry.exists():
                return False
            note = note_of(root, entry)
            note.parent.mkdir(parents=True, exist_ok=True)
            note.touch()
    except OSError:
        return entry.exists()
    return True


def made(root: Path, entry: Path, content: Path) -> None:
    """Writes the note of an entry that is about to be moved to its place.

    Raises:
        OSError: the note cannot be written.
    """
    begin(root)
    with content.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    note = note_of(root, entry)
    note.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(note) as temporary:
        temporary.write_text(digest)


def begin(root: Path) -> None:
    """Takes this process's lease, once.

    Raises:
        OSError: the cache cannot be written.
    """
    if root in _leases or not locks.AVAILABLE:
        return
    folder = root / FOLDER / "leases"
    folder.mkdir(parents=True, exist_ok=True)
    living(root)  # removes those of killed processes
    path = folder / f"{os.getpid()}-{uuid.uuid4().hex}"
    descriptor = locks.acquire(path)
    if descriptor is None or _leases.setdefault(root, descriptor) != descriptor:
        return
    atexit.register(path.unlink, missing_ok=True)


def living(root: Path) -> float:
    """Returns when the oldest living process of the cache began, in seconds; inf without one.

    Also removes the leases of processes that no longer exist.
    """
    if not locks.AVAILABLE:
        return time.time() - WITHOUT_LOCKS
    oldest = float("inf")
    for path in (root / FOLDER / "leases").glob("*"):
        with contextlib.suppress(FileNotFoundError):
            began = path.stat().st_mtime
            with locks.locked(path, wait=False) as free:
                if not free:
                    oldest = min(oldest, began)
    return oldest


def remove(root: Path, entry: Path, *, even_if_used: bool = False) -> bool:
    """Removes an entry and its note unless a living process may use it; returns whether it did.

    Raises:
        OSError: the cache cannot be written.
    """
    with _gate(root, alone=True):
        if not even_if_used and last_use(root, entry) >= living(root):
            return False
        entry.unlink(missing_ok=True)
        note_of(root, entry).unlink(missing_ok=True)
        return True


def last_use(root: Path, entry: Path) -> float:
    """Returns when an entry was last used, in seconds; without a note, when it was made."""
    note = note_of(root, entry)
    return (note if note.exists() else entry).stat().st_mtime


def digest_of(root: Path, entry: Path) -> str | None:
    """Returns the digest from the entry's note; None if it has none."""
    try:
        return note_of(root, entry).read_text() or None
    except FileNotFoundError:
        return None


def note_of(root: Path, entry: Path) -> Path:
    """Returns the path of an entry's note."""
    return root / FOLDER / "notes" / entry.relative_to(root)


@contextmanager
def _gate(root: Path, *, alone: bool) -> Iterator[None]:
    (root / FOLDER).mkdir(parents=True, exist_ok=True)
    with locks.gate(root / FOLDER / "gate", alone=alone):
        yield


STAGING = ".making"


def remove_abandoned(folder: Path) -> None:
    """Removes what dead processes left: staging directories whose entry's lock is free."""
    if not locks.AVAILABLE:
        return
    for staging in folder.glob(f".*{STAGING}"):
        entry = staging.name[1 : -len(STAGING)].rpartition(".")[0]
        lock = folder / f".{entry}.lock"
        if lock.exists():
            # A killed process leaves its lock file, but not its lock.
            with locked(lock, wait=False) as free:
                if free:
                    shutil.rmtree(staging, ignore_errors=True)
        else:
            shutil.rmtree(staging, ignore_errors=True)
