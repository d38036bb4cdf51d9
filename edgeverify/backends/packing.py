"""Chooses where XNNPACK keeps the weights that it packs: in memory, or in a mapped file.

XNNPACK repacks the weights of all signatures when a file is opened. In memory it packs them
separately for each signature: 154 MB for a file of 77 MB with two signatures, 13 GB for one of
4.4 GB with three. The file that they are read from is mapped at that time and counts as memory, too
(6.9 of 23.1 GB measured with SmolLM 1.7B), although the system can reclaim its pages. In a file the
weights are packed once, and need memory only for what is being packed. This is also faster: in a
check, all runs of TinyLlama 1.1B's file took 24 s instead of 88 s, those of SmolLM 135M's 8.3 s
instead of 10.0 s.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from edgeverify.core.errors import NoRoomError
from edgeverify.core.memory import available_memory, resident_memory
from edgeverify.core.units import shown
from edgeverify.litert.flatbuffer import ModelFile

# What a run needs besides its weights: the activations of a signature, caches and outputs.
ACTIVATIONS = 2**28
# Files of this size or more are packed faster on disk; smaller ones take no time in either place.
LARGE = 2**28


@dataclass(frozen=True)
class Packing:
    """The bytes that XNNPACK's packed weights of a file take in memory and on disk.

    Attributes:
        memory: bytes in memory, for all signatures.
        disk: bytes in a file, for all signatures.
        file: bytes of the .tflite itself, which is mapped during packing.
        largest: bytes of the largest weight, which is packed in memory in either case.
        room: bytes of memory that may be used; None if unknown, and then without a limit.
        disk_room: free bytes on the disk where the file would be.
        prefer_disk: whether the weights go to the disk even if they fit in both places.
    """

    memory: int
    disk: int
    file: int
    largest: int
    room: int | None
    disk_room: int
    prefer_disk: bool = False

    @property
    def in_memory(self) -> bool:
        """Whether the packed weights are kept in memory."""
        return self.fits_memory and not (self.prefer_disk and self.fits_disk)

    @property
    def fits(self) -> bool:
        """Whether the packed weights fit in one of the two places."""
        return self.fits_memory or self.fits_disk

    @property
    def fits_memory(self) -> bool:
        return self.room is None or self.memory + self.file <= self.room

    @property
    def fits_disk(self) -> bool:
        enough = self.room is None or self.largest + ACTIVATIONS <= self.room
        return enough and self.disk <= self.disk_room

    def __str__(self) -> str:
        room = "" if self.room is None else f" of {shown(self.room)}"
        if self.in_memory:
            return f"XNNPACK packs the weights in memory: {shown(self.memory + self.file)}{room}"
        return (
            f"XNNPACK packs the weights in a file, once: in memory, once for each signature, they "
            f"would take {shown(self.memory)} beside the file's {shown(self.file)}{room}"
        )


def choose_packing(path: Path, budget: int | None = None, *, own: bool = False) -> Packing:
    """Chooses where the weights of a file are packed.

    Args:
        path: a .tflite.
        budget: bytes that the process may use; the available memory if None.
        own: whether the file's folder is our own. If not, nothing is written there without need.

    Raises:
        ArtifactError: the file is not a .tflite.
        NoRoomError: the weights fit neither in memory nor on the disk.
    """
    chosen = _packing(path, budget)
    chosen = replace(chosen, prefer_disk=own and chosen.file >= LARGE)
    if not chosen.fits:
        raise NoRoomError(
            f"XNNPACK packs its weights, about {shown(chosen.memory)} in memory or "
            f"{shown(chosen.disk)} on the disk",
            where=path,
            expected=f"at most the {shown(chosen.room or 0)} of memory or the "
            f"{shown(chosen.disk_room)} of the disk that can be taken",
            fix="free some of either, or take --kernel builtin, which reads the weights in place",
        )
    return chosen


def _packing(path: Path, budget: int | None) -> Packing:
    file = ModelFile(path)
    spans = (file.buffer_span(index) for index in range(file.num_buffers))
    size = path.stat().st_size
    room = available_memory()
    if budget is not None:
        left = max(0, budget - (resident_memory() or 0))
        room = left if room is None else min(room, left)
    return Packing(
        memory=size * len(file.signatures),
        disk=size,
        file=size,
        largest=max((span[1] for span in spans if span is not None), default=0),
        room=room,
        disk_room=shutil.disk_usage(path.parent).free,
    )


def require_memory(path: Path) -> None:
    """Refuses a file whose packed weights do not fit in memory, for runtimes that pack only there.

    Raises:
        NoRoomError: without the refusal, the out-of-memory killer would end the process.
    """
    chosen = _packing(path, None)
    # The system reclaims the pages of the file itself when memory is short.
    if chosen.room is not None and chosen.memory > chosen.room:
        raise NoRoomError(
            f"XNNPACK packs its weights once for each signature, about {shown(chosen.memory)}",
            where=path,
            expected=f"at most the {shown(chosen.room)} of memory that are available",
            fix="take fewer --prefill, or --kernel builtin, which reads the weights in place",
        )
