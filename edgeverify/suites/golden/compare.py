"""Compares a run with a golden, array by array, in units of the noise floor.

Two correct float32 runs are each within the floor of the truth. A golden therefore holds as long
as the two differ by no more than that. In another environment (instruction set, kernels, threads)
they may differ by as much as was measured between such environments (``limits.json``, from
``python -m edgeverify.suites.golden.limits``).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Any

import numpy as np

from edgeverify.core import noise
from edgeverify.core.compare import Thresholds
from edgeverify.core.results import GoldenChange
from edgeverify.core.trace import Trace
from edgeverify.suites.golden import file as goldens
from edgeverify.suites.golden.file import Golden

ORACLE, REAUTHORED = "oracle/", "reauthored/"
# The oracle's own rounding is 1e-9 of the floor; a larger change means another computation.
ORACLE_LIMIT = 1e-3


@dataclass(frozen=True)
class Now:
    """The result of the same case today.

    Attributes:
        facts: as in ``Golden``.
        environment: as in ``Golden``.
        traces: key prefix in a golden → trace. ``""`` is the golden's own trace; of ``oracle/`` and
            ``reauthored/`` the golden keeps only the logits.
        floors: the same prefixes → floor.
    """

    facts: Mapping[str, Any]
    environment: Mapping[str, Any]
    traces: Mapping[str, Trace]
    floors: Mapping[str, noise.Floor]


@dataclass
class Moved:
    """The differences between a golden and today's run.

    Attributes:
        changes: by prefix, in forward order.
        worst: by prefix, the largest rms ratio and where it is.
        bitwise: whether every array is bitwise equal.
    """

    changes: dict[str, list[GoldenChange]] = field(default_factory=dict)
    worst: tuple[float, str] = (0.0, "")
    bitwise: bool = True

    def of(self, prefix: str) -> list[GoldenChange]:
        return self.changes.get(prefix, [])


@cache
def limits(place: str) -> Thresholds:
    """Returns the limits for ``same`` or ``other`` environments, in units of the floor."""
    text = resources.files("edgeverify.suites.golden").joinpath("limits.json").read_text()
    entry = json.loads(text)[place]
    return Thresholds(float(entry["rms"]), float(entry["row"]))


def compare(golden: Golden, now: Now, allowed: Thresholds) -> Moved:
    """Finds every array of a golden that a run lacks, or that differs by more than is allowed.

    Args:
        golden: as it was saved.
        now: the same case today.
        allowed: in units of the floor; for the oracle, ``ORACLE_LIMIT`` applies instead.
    """
    found = Moved()
    for key, kept in golden.arrays.items():
        prefix = _prefix(key, now)
        change = _change(key, kept, golden, now, prefix, allowed, found)
        if change is not None:
            found.changes.setdefault(prefix, []).append(change)
    for key in goldens.held(now.traces, condense=bool(golden.facts.get("condensed"))):
        if key not in golden.arrays:
            change = GoldenChange(key, "is new: the golden has no such array")
            found.changes.setdefault(_prefix(key, now), []).append(change)
    return found


def _prefix(key: str, now: Now) -> str:
    return next((prefix for prefix in now.traces if prefix and key.startswith(prefix)), "")


def _change(
    key: str,
    kept: np.ndarray,
    golden: Golden,
    now: Now,
    prefix: str,
    allowed: Thresholds,
    found: Moved,
) -> GoldenChange | None:
    """Describes the change of one array, if it is larger than is allowed."""
    base, _, kind = key.removeprefix(prefix).partition(":")
    trace, floor = now.traces[prefix], now.floors[prefix]
    if base not in trace:
        return GoldenChange(key, "is gone: the run no longer gives it")
    given = trace[base]
    if not kind and (given.shape != kept.shape or given.dtype != kept.dtype):
        was, now_is = f"{kept.dtype} {kept.shape}", f"{given.dtype} {given.shape}"
        return GoldenChange(key, f"was {was}, is {now_is}")
    if base not in floor:
        return GoldenChange(key, "cannot be judged: there is no floor for it")
    if not np.isfinite(given).all():
        return GoldenChange(key, "is NaN or Inf")
    if kind == goldens.TOP_TOKENS[1:]:
        return None  # judged by the values at these tokens
    error = _row_errors(key, kind, kept, given, golden)
    if error is None:
        return GoldenChange(key, f"has other rows or columns: was {kept.shape}")
    found.bitwise &= not error.any()
    rows = noise.RowErrors(error, np.asarray(floor[base]))
    if prefix == ORACLE:
        allowed = Thresholds(ORACLE_LIMIT, ORACLE_LIMIT)
    ratio, row_ratios = rows.error_ratio, rows.ratios(rows.rms_floor)
    worst = int(row_ratios.argmax())
    if ratio > found.worst[0]:
        found.worst = (ratio, key)
    if ratio <= allowed.rms_over(len(error)) and row_ratios[worst] <= allowed.row:
        return None
    told = f"moved by {ratio:.3g} of the noise floor, row {worst} by {row_ratios[worst]:.3g}"
    if allowed.row:
        told += f" (allowed {allowed.rms_over(len(error)):.3g} and {allowed.row:.3g})"
    return GoldenChange(key, told, ratio)


def _row_errors(
    key: str, kind: str, kept: np.ndarray, given: np.ndarray, golden: Golden
) -> np.ndarray | None:
    """Relative change of each row, (T,) float64; for sampled entries, scaled to the whole row."""
    rows = goldens.rows_of(given).astype(np.float64)
    if not kind:
        before = goldens.rows_of(kept).astype(np.float64)
        return _over(np.linalg.norm(rows - before, axis=1), np.linalg.norm(before, axis=1))
    norms = golden.arrays[key.partition(":")[0] + goldens.NORMS].astype(np.float64)
    if len(norms) != len(rows):
        return None
    if kind == goldens.NORMS[1:]:
        # In float32, because that is how it is stored.
        today = np.linalg.norm(rows, axis=1).astype(np.float32).astype(np.float64)
        return _over(np.abs(today - norms), norms)
    if kind == goldens.SAMPLE[1:]:
        columns = np.tile(goldens.sampled(rows.shape[1]), (len(rows), 1))
    else:
        columns = golden.arrays[key.partition(":")[0] + goldens.TOP_TOKENS]
    if columns.shape != kept.shape or columns.max(initial=0) >= rows.shape[1]:
        return None
    moved = np.linalg.norm(np.take_along_axis(rows, columns, 1) - kept.astype(np.float64), axis=1)
    return _over(moved * np.sqrt(rows.shape[1] / columns.shape[1]), norms)


def _over(error: np.ndarray, scale: np.ndarray) -> np.ndarray:
    return np.divide(error, scale, out=np.where(error > 0, np.inf, 0.0), where=scale > 0)
