"""Maintains the cache: lists its entries and limits its size."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from edgeverify.core.errors import ArtifactError
from edgeverify.core.store import leases


@dataclass(frozen=True)
class Entry:
    """One entry of the cache.

    Attributes:
        kind: the folder, e.g. ``converted``.
        path: where it is.
        size: in bytes.
        made: when, in seconds since 1970.
        used: when it was last used, in seconds since 1970.
    """

    kind: str
    path: Path
    size: int
    made: float
    used: float


@dataclass(frozen=True)
class Pruned:
    """The entries that were removed, those that stayed although due, and the remaining bytes.

    Attributes:
        removed: the least recently used first.
        spared: entries that stayed only because a living process may use them.
        left: bytes in the cache now.
    """

    removed: tuple[Entry, ...]
    spared: tuple[Entry, ...]
    left: int


def entries(root: Path) -> list[Entry]:
    """Returns all complete entries, sorted by kind and then the least recently used first."""
    return sorted(_entries(root), key=lambda entry: (entry.kind, entry.used, entry.path))


def _entries(root: Path) -> Iterator[Entry]:
    for folder in root.glob("*"):
        if folder.name.startswith(".") or not folder.is_dir():
            continue
        for path in folder.glob("*"):
            if path.name.startswith("."):  # a lock, or an entry in the making
                continue
            try:
                facts = path.stat()
                used = leases.last_use(root, path)
            except FileNotFoundError:  # removed in the meantime
                continue
            yield Entry(folder.name, path, facts.st_size, facts.st_mtime, used)


def prune(root: Path, *, max_size: int | None = None, older_than: float | None = None) -> Pruned:
    """Removes entries, the least recently used first, until the limits are met.

    Args:
        root: the cache's folder.
        max_size: the bytes that may remain.
        older_than: seconds; an entry that was unused for longer is removed whatever the size.

    Raises:
        ArtifactError: the cache cannot be written.
    """
    from edgeverify.core.store.leases import remove_abandoned

    found = sorted(_entries(root), key=lambda entry: (entry.used, entry.path))
    left, now = sum(entry.size for entry in found), time.time()
    removed, spared = [], []
    try:
        for folder in {entry.path.parent for entry in found}:
            remove_abandoned(folder)
        for entry in found:
            old = older_than is not None and now - entry.used > older_than
            if not old and (max_size is None or left <= max_size):
                continue
            if leases.remove(root, entry.path):
                removed.append(entry)
                left -= entry.size
            else:
                spared.append(entry)
    except OSError as error:
        raise unwritable(root, error) from error
    return Pruned(tuple(removed), tuple(spared), left)


def unwritable(root: Path, error: OSError) -> ArtifactError:
    return ArtifactError(
        f"cannot be written ({error.strerror})",
        where=root,
        expected="a cache of your own",
        fix="change its permissions, or name another one by --cache or EDGEVERIFY_CACHE",
    )
