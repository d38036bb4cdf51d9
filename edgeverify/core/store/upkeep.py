"""Looking after the cache: what is in it, bounding it, and reading all of it again."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeverify.core.errors import ArtifactError, EdgeVerifyError
from edgeverify.core.store import leases
from edgeverify.litert.contained.child import Child

READ = "edgeverify.core.store.upkeep:read_tflite"
DIGITS = frozenset("0123456789abcdef")


@dataclass(frozen=True)
class Entry:
    """One entry.

    Attributes:
        kind: the folder, e.g. ``converted``.
        path: where it is.
        size: in bytes.
        made: when, in seconds since 1970.
        used: when last.
    """

    kind: str
    path: Path
    size: int
    made: float
    used: float


@dataclass(frozen=True)
class Pruned:
    """What was removed, what had to stay because a living process may use it, and what is left.

    Attributes:
        removed: least recently used first.
        spared: would have been removed.
        left: bytes in the cache now.
    """

    removed: tuple[Entry, ...]
    spared: tuple[Entry, ...]
    left: int


def entries(root: Path) -> list[Entry]:
    """All whole entries, by kind and then the least recently used first."""
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
    """Removes entries, the least recently used first.

    Args:
        root: of the cache.
        max_size: bytes that may be left.
        older_than: seconds: what was not used for longer is removed whatever the size.

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
        raise _unwritable(root, error) from error
    return Pruned(tuple(removed), tuple(spared), left)


def verify(root: Path, *, remove: bool = False) -> Iterator[tuple[Entry, str]]:
    """Reads every entry again: yields each with what is wrong with it, or "".

    An entry must be readable as what its name says and, where its digest was noted when it was
    made, hold what was written then.

    Args:
        root: of the cache.
        remove: remove what is damaged. The next run makes it again.

    Raises:
        ArtifactError: the cache cannot be written.
    """
    with Child() as child:
        for entry in entries(root):
            try:
                fault = _fault(root, entry.path, child)
                if fault and remove:
                    leases.remove(root, entry.path, even_if_used=True)
            except FileNotFoundError:  # pruned in the meantime
                continue
            except OSError as error:
                raise _unwritable(root, error) from error
            yield entry, fault


def _fault(root: Path, path: Path, child: Child) -> str:
    noted = leases.digest_of(root, path)
    if noted is not None:
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != noted:
                return "does not hold what was written when it was made"
    try:
        if path.suffix == ".tflite":
            # Where a table is damaged, reading it may end a process.
            child.call(READ, path)
        elif path.suffix == ".safetensors":
            _read_safetensors(path)
        elif path.suffix == ".json":
            json.loads(path.read_text(encoding="utf-8"))
        elif path.suffix == ".txt" and not _is_digest(path.read_text(encoding="utf-8")):
            return "is no digest"
        elif path.suffix == ".f32" and path.stat().st_size % 4:
            return "is no whole number of float32 values"
    except EdgeVerifyError as error:
        return error.what
    except (ValueError, UnicodeDecodeError) as error:
        return f"cannot be read ({error})"
    return ""


def read_tflite(path: Path) -> None:
    """Reads a .tflite to its last index; run in a process of its own.

    Raises:
        ArtifactError: it is damaged.
    """
    from edgeverify.litert.flatbuffer.graph import ModelFile

    _: Any = ModelFile(path).model


def _read_safetensors(path: Path) -> None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            for key in file.keys():  # noqa: SIM118 - it is no mapping
                file.get_slice(key).get_shape()
    except SafetensorError as error:
        raise ValueError(str(error)) from error


def _is_digest(text: str) -> bool:
    return len(text) == 64 and set(text) <= DIGITS


def _unwritable(root: Path, error: OSError) -> ArtifactError:
    return ArtifactError(
        f"cannot be written ({error.strerror})",
        where=root,
        expected="a cache of your own",
        fix="change its permissions, or name another one by --cache or EDGEVERIFY_CACHE",
    )
