"""Reads every entry of the cache again and reports which are damaged."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgeverify.core.errors import EdgeVerifyError
from edgeverify.core.store import leases
from edgeverify.core.store.upkeep import Entry, entries, unwritable
from edgeverify.litert.contained.child import Child

READ = "edgeverify.suites.cache:read_tflite"
DIGITS = frozenset("0123456789abcdef")


def verify(root: Path, *, remove: bool = False) -> Iterator[tuple[Entry, str]]:
    """Reads every entry again and yields each with what is wrong with it, or "".

    An entry must be readable as what its name says. If its digest was recorded when it was made, it
    must also have the same contents as then.

    Args:
        root: of the cache.
        remove: remove damaged entries. The next run makes them again.

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
                raise unwritable(root, error) from error
            yield entry, fault


def _fault(root: Path, path: Path, child: Child) -> str:
    noted = leases.digest_of(root, path)
    if noted is not None:
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != noted:
                return "does not hold what was written when it was made"
    try:
        if path.suffix == ".tflite":
            # Reading a damaged table may crash the process.
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
    """Reads a .tflite to its last index; runs in a separate process.

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
