"""Caches every expensive result: content-addressed, atomic, shared by processes.

An entry is ``{root}/{kind}/{key}{suffix}``. It is made in its own directory beside its final place
and moved there when complete. So a killed run leaves nothing that a later run could take for an
entry. Each entry has a lock: a second process waits for the first instead of repeating its work.
``leases`` records which process uses which entry; ``EDGEVERIFY_CACHE_SIZE`` bounds the total size.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import os
import platform
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from edgeverify.core.errors import ArtifactError, DiskFullError
from edgeverify.core.store import leases
from edgeverify.core.store.leases import STAGING, remove_abandoned
from edgeverify.core.store.locks import locked
from edgeverify.core.units import bytes_of, shown
from edgeverify.core.whole_file import whole_file

PACKAGE_FOLDER = Path(__file__).parents[2]  # edgeverify itself
# Packages whose version affects the result of a conversion, a trace or a quantization.
PACKAGES = (
    "torch",
    "litert-torch",
    "litert-converter",
    "ai-edge-litert",
    "ai-edge-quantizer",
    "transformers",
    "numpy",
)
# Hashing runs at about 1.5 GB/s, so hashing a smaller file takes less time than a look-up.
REMEMBERED_BYTES = 8 * 2**20
_FULL = (errno.ENOSPC, errno.EDQUOT)
# The last two: there is a file where the cache, or a folder of it, should be.
_UNWRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)


def cache_root() -> Path:
    """Returns the cache's folder.

    ``$EDGEVERIFY_CACHE``, else ``$XDG_CACHE_HOME/edgeverify``, else ``~/.cache/edgeverify``.
    """
    if own := os.environ.get("EDGEVERIFY_CACHE"):
        return Path(own).expanduser()
    if shared := os.environ.get("XDG_CACHE_HOME"):
        return Path(shared) / "edgeverify"
    return Path.home() / ".cache" / "edgeverify"


def versions(*without: str) -> dict[str, str]:
    """Returns installed package → version, without importing any of them.

    Args:
        without: packages that the cached result does not depend on.
    """
    found = {}
    for package in PACKAGES:
        if package in without:
            continue
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def environment(**more: Any) -> dict[str, Any]:
    """What a result was made with: versions, Python and the machine, then ``more``."""
    python, machine = platform.python_version(), platform.machine()
    return {**versions(), "python": python, "machine": machine, **more}


def digest(*parts: Any) -> str:
    """Returns the SHA-256, as hex, of values: bytes, arrays, dataclasses, paths, JSON values.

    Equal values have equal digests in every process; the order of a mapping's keys does not matter.

    Raises:
        TypeError: a part has no canonical form.
    """
    total = hashlib.sha256()
    for part in parts:
        for piece in _canonical(part):
            total.update(len(piece).to_bytes(8, "little"))
            total.update(piece)
    return total.hexdigest()


def _canonical(part: Any) -> tuple[bytes, ...]:
    if isinstance(part, bytes | bytearray | memoryview):
        return b"bytes", bytes(part)
    if isinstance(part, np.ndarray):
        head = f"array {part.dtype.str} {part.shape}".encode()
        return head, np.ascontiguousarray(part).tobytes()
    text = json.dumps(part, sort_keys=True, separators=(",", ":"), default=_jsonable)
    return b"json", text.encode()


def _jsonable(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, bytes | np.ndarray):
        return digest(value)
    raise TypeError(f"{type(value).__name__} has no canonical form for a digest")


def source_digest(*patterns: str) -> str:
    """Digests files of this package, so that a change to them makes new cache entries.

    Args:
        patterns: globs relative to the package's folder, e.g. ``"litert/flatbuffer/*.py"``.

    Raises:
        ValueError: a pattern matches no file. Otherwise a rename would silently drop code from the
            keys.
    """
    sha = hashlib.sha256()
    for pattern in patterns:
        paths = sorted(PACKAGE_FOLDER.glob(pattern))
        if not paths:
            raise ValueError(f"no file of edgeverify matches {pattern!r}, which a cache key names")
        for path in paths:
            sha.update(path.name.encode() + path.read_bytes())
    return sha.hexdigest()


def file_digest(path: Path, *, root: Path | None = None) -> str:
    """Returns the SHA-256, as hex, of a file's contents.

    A large file is hashed once; its digest is cached by its path, size, times of change and inode.

    Raises:
        ArtifactError: the file cannot be read.
    """
    try:
        facts = path.stat()
        if facts.st_size < REMEMBERED_BYTES:
            return _hash_file(path)
        resolved = str(path.resolve())
        key = digest(resolved, facts.st_size, facts.st_mtime_ns, facts.st_ino, facts.st_ctime_ns)
        note = cached("digests", key, ".txt", lambda p: _write_digest(path, p), root=root)
        return note.read_text()
    except OSError as error:
        raise ArtifactError(
            f"cannot be read ({error.strerror})",
            where=path,
            expected="a readable file",
            fix="check the path and its permissions",
        ) from error


def _write_digest(path: Path, target: Path) -> None:
    target.write_text(_hash_file(path))


def _hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cached(
    kind: str,
    key: str,
    suffix: str,
    make: Callable[[Path], None],
    *,
    root: Path | None = None,
) -> Path:
    """Returns the entry's path; makes the entry if it does not exist.

    Args:
        kind: the folder, e.g. ``"converted"``.
        key: what the entry depends on, from ``digest``.
        suffix: the file name's ending, e.g. ``".tflite"``.
        make: a function that writes the entry to the path that it receives.
        root: another cache than ``cache_root()``.

    Raises:
        ArtifactError: the cache cannot be written, the disk is full, or ``make`` wrote nothing.
            Whatever else ``make`` raises passes through. In no case does a partial entry remain.
    """
    root = root or cache_root()
    folder = root / kind
    entry = folder / f"{key}{suffix}"
    if leases.hit(root, entry):
        return entry
    with full_disk_told(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder / f".{key}{suffix}.lock"):
            if leases.hit(root, entry):  # another process made it while this one waited
                return entry
            remove_abandoned(folder)
            staging = Path(tempfile.mkdtemp(prefix=f".{key}{suffix}.", suffix=STAGING, dir=folder))
            try:
                temporary = staging / f"{key[:16]}{suffix}"
                make(temporary)
                if not temporary.exists():
                    raise ArtifactError(
                        "nothing was written",
                        where=entry,
                        expected="a file",
                        fix="this is a fault of edgeverify, please report it",
                    )
                leases.made(root, entry, temporary)
                os.replace(temporary, entry)
            finally:
                shutil.rmtree(staging, ignore_errors=True)
    if bound := os.environ.get("EDGEVERIFY_CACHE_SIZE"):
        from edgeverify.core.store.upkeep import prune

        prune(root, max_size=bytes_of("EDGEVERIFY_CACHE_SIZE", bound))
    return entry


def place(source: Path, target: Path) -> None:
    """Copies an entry out of the cache; ``target`` is then complete or absent.

    Raises:
        ArtifactError: the folder cannot be written, or the disk is full.
    """
    with full_disk_told(target.parent):
        target.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(target) as temporary:
            shutil.copyfile(source, temporary)


def require_room(folder: Path, needed: int, what: str) -> None:
    """Refuses a disk with less than ``needed`` bytes free, before anything is written.

    Raises:
        ArtifactError: ``what`` says what would take them.
    """
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ArtifactError(
            f"the disk is full: {shown(free)} are free",
            where=folder,
            expected=f"{shown(needed)} {what}",
            fix="free some space, or set EDGEVERIFY_CACHE to a directory on a larger disk",
        )


@contextmanager
def full_disk_told(folder: Path) -> Iterator[None]:
    """Turns a full disk into a DiskFullError, however the writing library reported it."""
    try:
        yield
    except DiskFullError:
        raise
    except ArtifactError as error:
        if tells_full_disk(error.__cause__) or tells_full_disk(error):
            raise full_disk(folder) from error
        raise
    except Exception as error:
        if tells_full_disk(error):
            raise full_disk(folder) from error
        if isinstance(error, OSError) and error.errno in _UNWRITABLE:
            raise ArtifactError(
                f"cannot be written ({error.strerror})",
                where=error.filename or folder,
                expected="a writable directory",
                fix="take another --output, or another cache by --cache or EDGEVERIFY_CACHE",
            ) from error
        raise


def tells_full_disk(error: BaseException | None) -> bool:
    if isinstance(error, OSError) and error.errno in _FULL:
        return True
    # Native writers (safetensors, the converter) give the reason only in their text.
    return error is not None and "no space left on device" in str(error).lower()


def full_disk(folder: Path) -> DiskFullError:
    return DiskFullError(
        "the disk is full",
        where=folder,
        expected="room for a converted model (about its float32 size) and its instrumented copies",
        fix="free some space, or set EDGEVERIFY_CACHE to a directory on a larger disk",
    )


@contextmanager
def working_folder(folder: Path) -> Iterator[Path]:
    """Makes a temporary folder inside ``folder``.

    The next process that works there removes what a killed process left.

    Raises:
        ArtifactError: ``folder`` cannot be written, or the disk is full.
    """
    with full_disk_told(folder):
        remove_abandoned(folder)
        name = uuid.uuid4().hex
        with locked(folder / f".{name}.lock"):
            made = Path(tempfile.mkdtemp(prefix=f".{name}.", suffix=STAGING, dir=folder))
            try:
                yield made
            finally:
                shutil.rmtree(made, ignore_errors=True)
