"""Where XNNPACK keeps the weights that it packs: in memory, or in a file that is mapped.

XNNPACK repacks the weights of all signatures when a file is opened, in memory each signature for
itself: 154 MB for a file of 77 MB with two signatures, 13 GB for one of 4.4 GB with three. The file
that they are read from is mapped meanwhile, and counts as memory, too (6.9 of 23.1 GB measured with
SmolLM 1.7B), although the system can take its pages back. In a file they are packed once, and need
no memory but what is being packed. That is also faster: in a check, all runs of TinyLlama 1.1B's
file took 24 s instead of 88 s, those of SmolLM 135M's 8.3 s instead of 10.0 s.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from edgeverify.core.errors import NoRoomError
from edgeverify.core.memory import available_memory, resident_memory
from edgeverify.core.units import shown
from edgeverify.litert.flatbuffer import ModelFile

# What a run takes beside its weights: activations of a signature, caches, what it returns.
ACTIVATIONS = 2**28
# Files that are packed faster on the disk; smaller ones take no time in either place.
LARGE = 2**28


@dataclass(frozen=True)
class Packing:
    """What XNNPACK's packed weights take of a file, in bytes.

    Attributes:
        memory: all signatures' in memory.
        disk: the same in a file.
        file: of the file itself, which is mapped while they are packed.
        largest: the largest weight, which is packed in memory wherever it goes.
        room: what may be taken; None where it is not known, and all is taken.
        disk_room: what is free where the file would be.
        prefer_disk: whether they go there, too, if they fit both places.
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
        """Whether they are kept in memory."""
        return self.fits_memory and not (self.prefer_disk and self.fits_disk)

    @property
    def fits(self) -> bool:
        """Whether they fit in one of the two places."""
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
        budget: what the process may take, in bytes; what is available if None.
        own: whether its folder is our own. If not, nothing is written there without need.

    Raises:
        ArtifactError: it is no .tflite.
        NoRoomError: they fit neither in memory nor on the disk.
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
    """Refuses a file whose packed weights do not fit the memory, for runtimes that pack there.

    Raises:
        NoRoomError: what would end in the out-of-memory killer.
    """
    chosen = _packing(path, None)
    # The pages of the file itself are given up where the memory is short.
    if chosen.room is not None and chosen.memory > chosen.room:
        raise NoRoomError(
            f"XNNPACK packs its weights once for each signature, about {shown(chosen.memory)}",
            where=path,
            expected=f"at most the {shown(chosen.room)} of memory that are available",
            fix="take fewer --prefill, or --kernel builtin, which reads the weights in place",
        )
