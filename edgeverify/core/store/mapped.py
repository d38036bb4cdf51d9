"""Arrays in memory-mapped files, whose pages are given back when they have been used.

A page of a mapped file counts as resident memory from its first use on, and Linux takes it back
only when memory runs out. ``forget`` gives it back at once: the page is no longer the process's,
but stays in the system's file cache for as long as there is room for it, so that the next use costs
a look-up, not a read. What is no such array, ``forget`` leaves alone, so that code which may have
either need not ask.

A mapping is private: what is written into it is never written to the file, and is lost when it is
forgotten. Scratch files alone are shared with their file, so that nothing written there is lost.
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
# Python names it from 3.13 on; the number is that of Linux's asm-generic/mman-common.h.
_NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" else 0)
_DONTNEED = getattr(mmap, "MADV_DONTNEED", None)
# First byte → (the byte after the last, the mapping) of all mappings that live.
_MAPPINGS: dict[int, tuple[int, weakref.ref[mmap.mmap]]] = {}


def map_file(path: Path) -> np.ndarray:
    """Maps a file for reading; what is written into the array stays in memory.

    Returns:
        (bytes,) uint8.
    """
    with path.open("rb") as file:
        if not hasattr(mmap, "MAP_PRIVATE"):
            return _mapped(file, mmap.ACCESS_COPY)
        # Linux refuses a writable mapping that is larger than the memory, in case all of it is
        # written to, unless it is told not to keep room for that.
        flags = mmap.MAP_PRIVATE | _NORESERVE
        return register(mmap.mmap(file.fileno(), 0, flags, mmap.PROT_READ | mmap.PROT_WRITE))


def map_new(path: Path, size: int) -> np.ndarray:
    """Makes a file of ``size`` zero bytes and maps it; what is written goes into the file."""
    with path.open("x+b") as file:
        file.truncate(size)
        return _mapped(file, mmap.ACCESS_WRITE)


def scratch(size: int, folder: Path) -> np.ndarray:
    """``map_new`` of a file without a name, which is gone when the array is.

    Args:
        size: in bytes.
        folder: lies on the disk that has room for it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as file:
        file.truncate(size)
        return _mapped(file, mmap.ACCESS_WRITE)


def offsets(sizes: Mapping[str, int]) -> tuple[dict[str, int], int]:
    """Where arrays of these sizes (in bytes) begin, each on a page of its own; and the end."""
    begins, end = {}, 0
    for name, size in sizes.items():
        begins[name] = end
        end += -(-size // PAGE) * PAGE
    return begins, end


def is_mapped(*holders: Any) -> bool:
    """Whether all of the arrays or tensors lie in mapped files."""
    return all(_mapping_of(*_range(holder)) is not None for holder in holders)


def forget(*holders: Any) -> None:
    """Gives the pages of mapped arrays or tensors back; leaves all others alone.

    Their contents are read from the file again when they are next used.
    """
    for holder in holders:
        begin, size = _range(holder)
        found = _mapping_of(begin, size)
        if found is None or _DONTNEED is None:
            continue
        start, mapping = found
        # Whole pages alone: neighbours may have been written to.
        first = -(-(begin - start) // PAGE) * PAGE
        last = (begin - start + size) // PAGE * PAGE
        if begin + size == start + len(mapping):
            last = begin - start + size
        if last > first:
            mapping.madvise(_DONTNEED, first, last - first)


def spilled(arrays: Mapping[str, np.ndarray], folder: Path) -> dict[str, np.ndarray]:
    """The same arrays, moved into a scratch file."""
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
    """Makes a mapping of a file one whose pages ``forget`` gives back.

    Args:
        mapping: for reading, or shared with its file, if it is not to lose what is written to it.

    Returns:
        All of it, (bytes,) uint8.
    """
    array = np.frombuffer(mapping, np.uint8)
    begin, size = _range(array)
    # Addresses are used again: a mapping that is gone must be gone from here before.
    weakref.finalize(mapping, _MAPPINGS.pop, begin, None)
    _MAPPINGS[begin] = (begin + size, weakref.ref(mapping))
    return array


def _mapped(file: IO[bytes], access: int) -> np.ndarray:
    return register(mmap.mmap(file.fileno(), 0, access=access))


def _range(holder: Any) -> tuple[int, int]:
    """Address and bytes of a contiguous array or tensor."""
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
