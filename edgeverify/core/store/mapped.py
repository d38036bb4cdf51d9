"""Memory-maps arrays and releases their pages after use.

A page of a mapped file counts as resident memory from its first use on, and Linux reclaims it only
when memory runs out. ``forget`` releases it at once: the page no longer belongs to the process, but
stays in the system's file cache for as long as there is room for it. The next use then costs a
look-up, not a read. ``forget`` ignores an array that is not mapped, so callers that may have either
kind need not check.

A mapping is private: what is written into it never reaches the file, and is lost when ``forget``
releases it. Only new files (``map_new``) and scratch files are shared with their file, so that
nothing written to them is lost.
"""

from __future__ import annotations

import mmap
import sys
import tempfile
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from edgeverify.core.store.growing_rows import joined, parted

PAGE = mmap.PAGESIZE
# Python has this name from 3.13 on; the number is from Linux's asm-generic/mman-common.h.
_NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" else 0)
_DONTNEED = getattr(mmap, "MADV_DONTNEED", None)
# First byte → (the byte after the last, the mapping), for all mappings that are alive.
_MAPPINGS: dict[int, tuple[int, weakref.ref[mmap.mmap]]] = {}


def map_file(path: Path) -> np.ndarray:
    """Maps a file for reading; writing to the array changes only memory, not the file.

    Returns:
        (bytes,) uint8.
    """
    with path.open("rb") as file:
        if not hasattr(mmap, "MAP_PRIVATE"):
            return _mapped(file, mmap.ACCESS_COPY)
        # Linux refuses a writable mapping that is larger than the memory, because all of it might
        # be written to, unless a flag says not to reserve room for that.
        flags = mmap.MAP_PRIVATE | _NORESERVE
        return register(mmap.mmap(file.fileno(), 0, flags, mmap.PROT_READ | mmap.PROT_WRITE))


def map_new(path: Path, size: int) -> np.ndarray:
    """Makes a file of ``size`` zero bytes and maps it; writing to the array changes the file."""
    with path.open("x+b") as file:
        file.truncate(size)
        return _mapped(file, mmap.ACCESS_WRITE)


def scratch(size: int, folder: Path) -> np.ndarray:
    """Maps a new file without a name, which disappears together with the array.

    Args:
        size: in bytes.
        folder: a folder on a disk that has room for the file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as file:
        file.truncate(size)
        return _mapped(file, mmap.ACCESS_WRITE)


def offsets(sizes: Mapping[str, int]) -> tuple[dict[str, int], int]:
    """Returns where arrays of these sizes (in bytes) begin, each on its own page, and the end."""
    begins, end = {}, 0
    for name, size in sizes.items():
        begins[name] = end
        end += -(-size // PAGE) * PAGE
    return begins, end


def is_mapped(*holders: Any) -> bool:
    """Checks whether all of the arrays or tensors lie in mapped files."""
    return all(_mapping_of(*_range(holder)) is not None for holder in holders)


def forget(*holders: Any) -> None:
    """Releases the pages of mapped arrays or tensors; ignores all others.

    Their contents are read from the file again when they are next used.
    """
    for holder in holders:
        begin, size = _range(holder)
        found = _mapping_of(begin, size)
        if found is None or _DONTNEED is None:
            continue
        start, mapping = found
        # Only whole pages: neighbours may have been written to.
        first = -(-(begin - start) // PAGE) * PAGE
        last = (begin - start + size) // PAGE * PAGE
        if begin + size == start + len(mapping):
            last = begin - start + size
        if last > first:
            mapping.madvise(_DONTNEED, first, last - first)


def spilled(arrays: Mapping[str, np.ndarray], folder: Path) -> dict[str, np.ndarray]:
    """Returns the same arrays, moved into a scratch file."""
    held, shared = parted(arrays)
    begins, end = offsets({name: array.nbytes for name, array in held.items()})
    if not end:
        return dict(arrays)
    room = scratch(end, folder)
    moved = {}
    for name, array in held.items():
        place = room[begins[name] : begins[name] + array.nbytes]
        moved[name] = place.view(array.dtype).reshape(array.shape)
        moved[name][...] = array
        forget(moved[name])
    found = joined(moved, shared)
    return {name: found[name] for name in arrays}


def register(mapping: mmap.mmap) -> np.ndarray:
    """Registers a mapping of a file, so that ``forget`` can release its pages.

    Args:
        mapping: opened for reading; or shared with its file, if what is written must not be lost.

    Returns:
        The whole mapping, (bytes,) uint8.
    """
    array = np.frombuffer(mapping, np.uint8)
    begin, size = _range(array)
    # Addresses are reused: a mapping must leave this table before its address is free again.
    weakref.finalize(mapping, _MAPPINGS.pop, begin, None)
    _MAPPINGS[begin] = (begin + size, weakref.ref(mapping))
    return array


def _mapped(file: IO[bytes], access: int) -> np.ndarray:
    return register(mmap.mmap(file.fileno(), 0, access=access))


def _range(holder: Any) -> tuple[int, int]:
    """Returns the address and the bytes of a contiguous array or tensor."""
    if isinstance(holder, np.ndarray):
        return holder.__array_interface__["data"][0], holder.nbytes
    if holder.device.type != "cpu":
        return 0, 0
    return holder.data_ptr(), holder.numel() * holder.element_size()


def _mapping_of(begin: int, size: int) -> tuple[int, mmap.mmap] | None:
    for start, (end, reference) in _MAPPINGS.items():
        if start <= begin and begin + size <= end:
            mapping = reference()
            return None if mapping is None else (start, mapping)
    return None
