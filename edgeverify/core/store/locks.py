"""Locks files between processes. A lock ends with its process, however the process ends."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # not a POSIX system: nothing is locked, and work may be done twice
    fcntl = None  # type: ignore[assignment]

AVAILABLE = fcntl is not None


def acquire(path: Path, *, wait: bool = True) -> int | None:
    """Locks a file; returns the locked descriptor, or None if another process has the lock.

    Closing the descriptor releases the lock.
    """
    if fcntl is None:
        raise OSError("there are no file locks on this system")
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError:
            os.close(descriptor)
            if wait:
                raise
            return None
        # The file may have been removed by its last holder between open and flock.
        try:
            current = os.stat(path).st_ino == os.fstat(descriptor).st_ino
        except FileNotFoundError:
            current = False
        if current:
            return descriptor
        os.close(descriptor)


@contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[bool]:
    """Locks a file and removes it at the end; yields whether the lock was obtained."""
    if fcntl is None:
        yield wait
        return
    descriptor = acquire(path, wait=wait)
    if descriptor is None:
        yield False
        return
    try:
        yield True
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


@contextmanager
def gate(path: Path, *, alone: bool) -> Iterator[None]:
    """Passes a gate: many processes share it, or one has it exclusively; its file stays.

    Raises:
        OSError: the file cannot be made.
    """
    if fcntl is None:
        yield
        return
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        yield
    finally:
        os.close(descriptor)
