"""Saves and loads goldens: a model's output on disk, which later runs are compared with.

A golden is a ``Trace`` on disk. Its provenance says where it came from (``facts``: digests of
config, weights, inputs and code; ``environment``: versions, processor, kernel; ``command``). It
also carries a digest over the whole golden, and an edited golden is refused. Goldens are written
by a run, never by hand.

Nothing here runs a model; ``run`` in this package does.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgeverify.core import taps
from edgeverify.core.errors import GoldenError, TraceError
from edgeverify.core.trace import Trace

FORMAT = 1
# A repository keeps every version of every golden for ever.
MAX_BYTES = 1_000_000
SUFFIX = ".safetensors"
# Of a real checkpoint, these few numbers identify a tap in little space.
SAMPLED = 16  # entries of each row
TOP = 10  # logits of each row
NORMS, SAMPLE, TOP_VALUES, TOP_TOKENS = ":norms", ":sample", ":top", ":top-tokens"


@dataclass(frozen=True)
class Golden:
    """A saved run.

    Attributes:
        arrays: ``prefill.0/blocks.3.attn.k`` → float32; a condensed golden has the keys of
            ``condensed``; ``oracle/prefill.0/logits`` → float64.
        facts: digests and counts by name; JSON values.
        environment: versions of the libraries, processor, instruction set, kernel, threads.
        command: makes the golden again.
    """

    arrays: Mapping[str, np.ndarray]
    facts: Mapping[str, Any]
    environment: Mapping[str, Any]
    command: str


def digest_of(golden: Golden) -> str:
    """Returns the SHA-256, as hex, over every array and all text of the golden."""
    sha = hashlib.sha256()
    told = [FORMAT, golden.facts, golden.environment, golden.command]
    sha.update(json.dumps(told, sort_keys=True).encode())
    for key in sorted(golden.arrays):
        array = np.ascontiguousarray(golden.arrays[key])
        sha.update(f"\n{key} {array.dtype.str} {array.shape}\n".encode())
        sha.update(array.tobytes())
    return sha.hexdigest()


def save(golden: Golden, path: Path) -> None:
    """Writes a golden atomically: the file is complete or absent.

    Raises:
        GoldenError: it would exceed ``MAX_BYTES``.
    """
    size = sum(array.nbytes for array in golden.arrays.values())
    if size > MAX_BYTES:
        raise GoldenError(
            f"would take {size / 1e6:.2f} MB",
            where=path,
            expected=f"at most {MAX_BYTES / 1e6:.0f} MB",
            fix="take a shorter --prefill or fewer --decode-steps",
        )
    provenance = {
        "golden": FORMAT,
        "facts": dict(golden.facts),
        "environment": dict(golden.environment),
        "command": golden.command,
        "digest": digest_of(golden),
    }
    Trace(dict(golden.arrays), provenance).save(path)


def load(path: Path, command: str) -> Golden:
    """Reads a golden.

    Args:
        path: the file.
        command: makes the golden again; error messages quote it.

    Raises:
        GoldenError: it is too large, damaged, of another format, or was edited by hand.
    """
    if path.stat().st_size > MAX_BYTES + 2**18:  # the table of names and the provenance
        raise GoldenError(
            f"has {path.stat().st_size / 1e6:.2f} MB",
            where=path,
            expected=f"at most {MAX_BYTES / 1e6:.0f} MB",
            fix=f"make a smaller one: {command}",
        )
    try:
        trace = Trace.load(path)
    except TraceError as error:
        raise GoldenError(
            error.what, where=path, expected="a golden as it was written", fix=f"run: {command}"
        ) from error
    told = trace.provenance
    if told.get("golden") != FORMAT:
        raise GoldenError(
            f"is of format {told.get('golden')!r}",
            where=path,
            expected=f"format {FORMAT}",
            fix=f"make it anew with this version: {command}",
        )
    try:
        golden = Golden(trace.arrays, told["facts"], told["environment"], told["command"])
        kept = told["digest"]
    except KeyError as error:
        raise GoldenError(
            f"its provenance has no {error}", where=path, fix=f"make it anew: {command}"
        ) from error
    if digest_of(golden) != kept:
        raise GoldenError(
            "is not what was written: its contents do not have the digest that it carries",
            where=path,
            expected="a golden that nobody has edited",
            fix=f"restore it from version control, or, if the change is meant, run: {command}",
        )
    return golden


def held(traces: Mapping[str, Trace], *, condense: bool) -> dict[str, np.ndarray]:
    """Selects the arrays that a golden stores.

    Args:
        traces: prefix → trace. The trace without a prefix is stored whole, of the others only the
            logits.
        condense: store each array as ``condensed`` reduces it.
    """
    arrays: dict[str, np.ndarray] = {}
    for prefix, trace in traces.items():
        if prefix:
            logits = [key for key in trace if taps.split(key)[1] == taps.LOGITS]
            trace = Trace({key: trace[key] for key in logits})
        kept = condensed(trace) if condense else whole(trace)
        arrays |= {prefix + key: array for key, array in kept.items()}
    return arrays


def whole(trace: Trace) -> dict[str, np.ndarray]:
    """Returns all taps of a trace; the KV cache only of the last step, as it holds all rows."""
    last = taps.split(list(trace)[-1])[0]
    return {
        key: array
        for key, array in trace.arrays.items()
        if not taps.split(key)[1].startswith("kv.") or taps.split(key)[0] == last
    }


def condensed(trace: Trace) -> dict[str, np.ndarray]:
    """Reduces a trace to a few numbers that identify it.

    These are the L2 norm of each row of every tap and ``SAMPLED`` evenly spread entries of the row;
    for logits also the ``TOP`` largest with their token ids. The KV caches are left out, because
    their rows are those of k and v.

    Returns:
        ``{key}:norms`` (T,), ``{key}:sample`` (T, ≤ 16), ``{key}:top`` (T, 10) float32 and
        ``{key}:top-tokens`` (T, 10) int32.
    """
    out: dict[str, np.ndarray] = {}
    for key, array in trace.arrays.items():
        tap = taps.split(key)[1]
        if tap.startswith("kv."):
            continue
        rows = rows_of(array)
        out[key + NORMS] = np.linalg.norm(rows.astype(np.float64), axis=1).astype(np.float32)
        out[key + SAMPLE] = rows[:, sampled(rows.shape[1])]
        if tap == taps.LOGITS:
            tokens = np.argsort(-rows, axis=1, kind="stable")[:, :TOP].astype(np.int32)
            out[key + TOP_TOKENS] = tokens
            out[key + TOP_VALUES] = np.take_along_axis(rows, tokens, axis=1)
    return out


def rows_of(array: np.ndarray) -> np.ndarray:
    """Reshapes (B, T, ...) to (B·T, C)."""
    return array.reshape(array.shape[0] * array.shape[1], -1)


def sampled(width: int) -> np.ndarray:
    """Returns the columns of a row that are sampled, ascending."""
    return np.unique(np.linspace(0, width - 1, min(SAMPLED, width)).astype(np.int64))
