"""A Trace: the named arrays of one run, in forward order, with their provenance.

On disk a trace is one ``.safetensors`` file whose metadata is the provenance. A golden is a trace
on disk.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from edgeverify.core.errors import TraceError
from edgeverify.core.store.growing_rows import GrowingRows, joined, parted
from edgeverify.core.store.mapped import map_file, spilled
from edgeverify.core.whole_file import whole_file

FORMAT = "edgeverify-trace-1"
_DTYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16}


@dataclass
class Trace:
    """Arrays by ``step/tap``, in forward order.

    Attributes:
        arrays: ``"prefill.0/blocks.3.attn.k"`` → array. Activations are (B, T, C); q, k, v and
            the KV cache are (B, T, N, H).
        provenance: facts about the run, JSON values only.
        unavailable: tap → the reason why this run could not read it.
    """

    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    unavailable: dict[str, str] = field(default_factory=dict)
    _caches: dict[str, GrowingRows] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def add(self, step: str, tap: str, array: np.ndarray) -> None:
        """Records ``array`` under ``step/tap``. A tap is recorded once per step.

        If the first rows of a float32 or float64 KV cache equal those of the step before, both
        steps share these rows, in memory and in files.
        """
        key = f"{step}/{tap}"
        if key in self.arrays:
            raise ValueError(f"{key} was recorded twice")
        if tap.startswith("kv.") and array.shape[0] == 1 and array.dtype.kind == "f":
            rows = self._caches.setdefault(tap, GrowingRows())
            array = rows.put(np.ascontiguousarray(array))
        self.arrays[key] = array

    def __iter__(self) -> Iterator[str]:
        return iter(self.arrays)

    def __getitem__(self, key: str) -> np.ndarray:
        return self.arrays[key]

    def __contains__(self, key: str) -> bool:
        return key in self.arrays

    def save(self, path: Path) -> None:
        """Writes the trace atomically: a killed run leaves no half file under ``path``."""
        path.parent.mkdir(parents=True, exist_ok=True)
        held, shared = parted(self.arrays)
        metadata = {
            "format": FORMAT,
            "order": json.dumps(list(self.arrays)),
            "provenance": json.dumps(self.provenance, sort_keys=True),
            "unavailable": json.dumps(self.unavailable),
            "shared": json.dumps(shared),
        }
        arrays = {key: np.ascontiguousarray(value) for key, value in held.items()}
        with whole_file(path) as temporary:
            save_file(arrays, temporary, metadata=metadata)

    @classmethod
    def load(cls, path: Path, *, mapped: bool = False) -> Trace:
        """Reads a trace back, in its forward order.

        Args:
            path: the file.
            mapped: True returns memory-mapped views of the file; False returns copies in memory.

        Raises:
            TraceError: the file is missing, damaged, or not a trace of this format.
        """
        try:
            with safe_open(path, framework="numpy") as file:
                metadata: Mapping[str, str] = file.metadata() or {}
                if metadata.get("format") != FORMAT:
                    raise TraceError(
                        f"format {metadata.get('format')!r}",
                        where=path,
                        expected=FORMAT,
                        fix="make the trace again with this version",
                    )
                order = json.loads(metadata["order"])
                shared = json.loads(metadata.get("shared", "{}"))
                if sorted(order) != sorted([*file.keys(), *shared]):
                    raise ValueError("its order does not name the arrays it holds")
                held = _views(path) if mapped else {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
                arrays = joined(held, shared)
                return cls(
                    {key: arrays[key] for key in order},
                    json.loads(metadata["provenance"]),
                    json.loads(metadata["unavailable"]),
                )
        except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
            raise TraceError(
                f"cannot be read as a trace ({error})",
                where=path,
                expected="a whole .safetensors file",
                fix="delete it and run again",
            ) from error

    def spilled(self, folder: Path) -> Trace:
        """Returns the same trace with its arrays moved into a scratch file in ``folder``."""
        return Trace(spilled(self.arrays, folder), self.provenance, self.unavailable)


def _views(path: Path) -> dict[str, np.ndarray]:
    """Maps the arrays of a file that ``safe_open`` has accepted."""
    contents = map_file(path)
    begin = 8 + int.from_bytes(contents[:8].tobytes(), "little")
    views = {}
    for key, facts in json.loads(contents[8:begin].tobytes()).items():
        if key != "__metadata__":
            start, stop = (begin + int(n) for n in facts["data_offsets"])
            views[key] = contents[start:stop].view(_DTYPES[facts["dtype"]]).reshape(facts["shape"])
    return views
