"""A .tflite without its weights: a table, and where the bytes behind it are in another file.

Finding the taps and packing a table takes seconds. Streaming half a gigabyte of weights behind it
takes a quarter of a second. So for a copy of a large file, the cache keeps only the table.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from safetensors.numpy import load_file, save_file


@dataclass(frozen=True)
class Skeleton:
    """The parts from which ``assemble`` makes a file.

    Attributes:
        table: the flatbuffer; its buffers lie behind it.
        spans: (n, 3) int64: a span's start in the file, its start in the source, its bytes.
    """

    table: bytes
    spans: np.ndarray

    def save(self, path: Path) -> None:
        """Writes the skeleton as safetensors."""
        save_file({"table": np.frombuffer(self.table, np.uint8), "spans": self.spans}, path)

    @classmethod
    def load(cls, path: Path) -> Skeleton:
        """Reads a skeleton that ``save`` wrote."""
        arrays = load_file(path)
        return cls(arrays["table"].tobytes(), arrays["spans"])

    def assemble(self, source: Path, target: Path) -> None:
        """Writes the whole file.

        Args:
            source: the file that contains the spans.
            target: the file to write.

        Raises:
            OSError: the target cannot be written, or the source ends early.
        """
        with source.open("rb") as read, target.open("wb") as out:
            out.write(self.table)
            for start, origin, size in self.spans.tolist():
                out.write(b"\0" * (start - out.tell()))
                _copy(read, out, origin, size)


def _copy(source: IO[bytes], target: IO[bytes], start: int, size: int) -> None:
    """Appends a span of ``source`` to ``target``, inside the kernel if possible."""
    target.flush()
    done = 0
    while done < size:
        try:
            count = os.copy_file_range(
                source.fileno(), target.fileno(), size - done, start + done, target.tell()
            )
        except (AttributeError, OSError):  # another system, or two file systems
            source.seek(start + done)
            chunk = source.read(min(size - done, 16 * 2**20))
            target.write(chunk)
            target.flush()
            count = len(chunk)
        else:
            target.seek(count, os.SEEK_CUR)
        if count == 0:
            raise OSError(f"{source.name} ended {size - done} bytes early")
        done += count
