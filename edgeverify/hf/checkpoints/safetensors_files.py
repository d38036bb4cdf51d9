"""Reads safetensors: checks the header without the data, and memory-maps the data.

Format: 8 bytes of header length (little-endian), the header as JSON, the tensors' bytes.
https://huggingface.co/docs/safetensors
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from edgeverify.core.errors import CheckpointError
from edgeverify.core.store.mapped import map_file
from edgeverify.hf.checkpoints.expected import Entry

# The exceptions of reading a JSON whose form is not the format's.
_MALFORMED = (ValueError, TypeError, KeyError, AttributeError, OverflowError)
# The format's own limit (safetensors, `MAX_HEADER_SIZE`).
_MAX_HEADER_BYTES = 100_000_000
_DTYPES = {
    "F64": ("float64", 8),
    "F32": ("float32", 4),
    "F16": ("float16", 2),
    "BF16": ("bfloat16", 2),
    "F8_E4M3": ("float8_e4m3fn", 1),
    "F8_E5M2": ("float8_e5m2", 1),
    "I64": ("int64", 8),
    "I32": ("int32", 4),
    "I16": ("int16", 2),
    "I8": ("int8", 1),
    "U8": ("uint8", 1),
    "BOOL": ("bool", 1),
}


def list_safetensors(path: Path) -> dict[str, Entry]:
    """Reads the header and checks that the file is as long as the header says.

    Raises:
        CheckpointError: the file is cut short, not safetensors, or its header is damaged.
        OSError: the file cannot be read.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        length = int.from_bytes(prefix, "little")
        if len(prefix) < 8 or length > min(size - 8, _MAX_HEADER_BYTES):
            raise _damaged(path, f"no header fits into its {size} bytes")
        raw = file.read(length)
    try:
        header = json.loads(raw, object_pairs_hook=_unique)
        entries, end = _entries(path, header)
    except (*_MALFORMED, RecursionError) as error:
        raise _damaged(path, f"its header is damaged ({error})") from error
    wanted = 8 + length + end
    if size < wanted:
        raise CheckpointError(
            f"is cut short: {size} bytes of {wanted}",
            where=path,
            expected=f"the {wanted} bytes that its header announces",
            fix="copy or download it again",
        )
    try:
        with safe_open(path, framework="pt"):
            pass
    except SafetensorError as error:
        raise _damaged(path, f"safetensors refuses it ({error})") from error
    return entries


def read_safetensors(path: Path, names: Sequence[str]) -> Iterator[tuple[str, torch.Tensor]]:
    """Yields the named tensors in their stored dtype, as views of the memory-mapped file.

    Raises:
        CheckpointError: the file changed after it was listed.
    """
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            for name in names:
                yield name, file.get_tensor(name)
    except SafetensorError as error:
        raise _damaged(path, f"safetensors cannot read it ({error})") from error


def map_safetensors(path: Path) -> dict[str, torch.Tensor]:
    """Maps all tensors of a listed file, in their stored dtype, without reading any.

    They are views of one mapping, whose pages ``edgeverify.core.store.mapped.forget`` releases.
    """
    contents = map_file(path)
    begin = 8 + int.from_bytes(contents[:8].tobytes(), "little")
    header = json.loads(contents[8:begin].tobytes())
    tensors = {}
    for name, facts in header.items():
        if name != "__metadata__":
            start, stop = (begin + int(n) for n in facts["data_offsets"])
            dtype = getattr(torch, _DTYPES[facts["dtype"]][0])
            held = torch.from_numpy(contents[start:stop]).view(dtype)
            tensors[name] = held.view([int(n) for n in facts["shape"]])
    return tensors


def _entries(path: Path, header: Any) -> tuple[dict[str, Entry], int]:
    entries: dict[str, Entry] = {}
    end = 0
    for name, facts in header.items():
        if name == "__metadata__":
            continue
        code, shape = str(facts["dtype"]), tuple(int(n) for n in facts["shape"])
        begin, stop = (int(n) for n in facts["data_offsets"])
        dtype, width = _DTYPES.get(code, (code.lower(), None))
        if width is not None and stop - begin != math.prod(shape) * width:
            raise ValueError(f"{name!r} has {stop - begin} bytes for {dtype} {shape}")
        entries[name] = Entry(path, shape, dtype)
        end = max(end, stop)
    return entries, end


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice!r} is listed twice")
    return found


def _damaged(path: Path, what: str) -> CheckpointError:
    return CheckpointError(
        what,
        where=path,
        expected="a whole .safetensors file",
        fix="copy or download it again",
    )
