"""Judges one trace against a baseline: identity first, then values, tap by tap.

Nothing is skipped. A tap that is missing, extra, not finite, or of another shape or dtype fails
before its values are compared. A tap that could not be read is ``unchecked``. A comparison of
nothing is an error.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from types import MappingProxyType

import numpy as np

from edgeverify.core import noise, taps
from edgeverify.core.errors import TraceError
from edgeverify.core.results import (
    FAIL,
    PASS,
    UNCHECKED,
    TapResult,
)
from edgeverify.core.store.mapped import forget
from edgeverify.core.trace import Trace

# The rms over rows is a stable figure from about this many rows on. Fewer rows are judged together
# with the other short steps of the same tap (a decode step has one row). Identical rows count once:
# the int8 file of a right port answered with one token eight times, and the one norm that depends
# only on the token had a ratio of 1.68.
MIN_ROWS_FOR_RMS = 8
POSITION_0_AGREES = "position 0 agrees"
NOWHERE: Mapping[str, int] = MappingProxyType({})


@dataclass(frozen=True)
class Thresholds:
    """Allowed error ratios, rms over rows and at the worst row."""

    rms: float
    row: float

    def rms_over(self, rows: int) -> float:
        """Returns the allowed rms ratio over few rows: from ``row`` for one row to ``rms``.

        Both ends are calibrated. Between them the allowance falls linearly with each further row.
        """
        missing = max(0, MIN_ROWS_FOR_RMS - rows) / (MIN_ROWS_FOR_RMS - 1)
        return self.rms + (self.row - self.rms) * missing

    def as_dict(self) -> dict[str, float]:
        return {"rms": self.rms, "row": self.row}


@cache
def thresholds(kind: str) -> Thresholds:
    """Returns the calibrated thresholds of a kind of leg, or of the ``isolated`` runs.

    They are read from ``thresholds.json``, which ``python -m edgeverify.suites.calibrate`` writes.
    """
    table = json.loads(resources.files("edgeverify.core").joinpath("thresholds.json").read_text())
    entry = table[kind]
    return Thresholds(rms=float(entry["rms"]), row=float(entry["row"]))


def compare(
    candidate: Trace,
    oracle: Trace,
    floor: noise.Floor,
    limits: Thresholds,
    expected: Sequence[str],
    starts: Mapping[str, int] = NOWHERE,
    rows_out: dict[str, np.ndarray] | None = None,
) -> tuple[TapResult, ...]:
    """Judges every expected tap of every step.

    Args:
        candidate: the run to be judged; float32 arrays.
        oracle: float64.
        floor: from ``noise.floor_of``.
        limits: the allowed ratios.
        expected: the ``step/tap`` keys that must be there, in forward order.
        starts: step → position of its first token, so that reasons name rows by their position.
        rows_out: receives the ratio of every row of each measured tap.

    Returns:
        One result per expected key, in order, then one failure per extra key.

    Raises:
        TraceError: nothing is expected, or the baseline itself lacks a key.
    """
    if not expected:
        raise TraceError("nothing is to be compared", expected="at least one step with one tap")
    for key in expected:
        known = key in oracle and key in floor
        if not known and key not in oracle.unavailable:
            raise TraceError(f"the baseline has no {key}", fix="delete the cache and run again")
    measured: dict[str, noise.RowErrors] = {}
    results: dict[str, TapResult] = {}
    for key in expected:
        problem = _identity(key, candidate, oracle, floor, _first_position(key, starts))
        if problem is not None:
            results[key] = problem
        else:
            measured[key] = noise.measure(candidate[key], oracle[key], floor[key])
            forget(candidate[key], oracle[key])
    for key, rows, pooled in _pools(measured):
        first = _first_position(key, starts)
        ratios = rows.ratios(pooled.rms_floor)
        results[key] = _judge(key, rows, ratios, pooled, limits, first)
        if rows_out is not None:
            rows_out[key] = ratios
        if results[key].outcome == PASS and taps.split(key)[1] == taps.LOGITS:
            results[key] = _judge_greedy(results[key], candidate, oracle, floor, limits, first)
    wanted = set(expected)
    extra = [key for key in candidate if key not in wanted]
    return (
        *(results[key] for key in expected),
        *(TapResult(key, FAIL, reason="extra: the baseline has no such tap") for key in extra),
    )


def _first_position(key: str, starts: Mapping[str, int]) -> int:
    """Returns the position of the tap's first row; a cache's first row is always position 0."""
    step, tap = taps.split(key)
    return 0 if tap.startswith("kv.") else starts.get(step, 0)


def _identity(
    key: str, candidate: Trace, oracle: Trace, floor: noise.Floor, first: int
) -> TapResult | None:
    if key not in oracle:
        return TapResult(key, UNCHECKED, reason=f"the baseline: {oracle.unavailable[key]}")
    truth = oracle[key]
    if not (np.isfinite(truth).all() and np.isfinite(floor[key]).all()):
        # Every comparison with NaN is false, and nothing exceeds Inf: the tap would pass.
        return TapResult(key, UNCHECKED, reason="the baseline itself gives NaN or Inf here")
    if key not in candidate:
        if key in candidate.unavailable:
            return TapResult(key, UNCHECKED, reason=candidate.unavailable[key])
        return TapResult(key, FAIL, reason="missing: the run did not produce this tap")
    array = candidate[key]
    if array.shape != truth.shape:
        return TapResult(key, FAIL, reason=f"shape {array.shape}, expected {truth.shape}")
    if array.dtype != np.float32:
        dtype = "bfloat16" if array.dtype == "V2" else array.dtype
        return TapResult(key, FAIL, reason=f"dtype {dtype}, expected float32")
    if array.size == 0:
        return TapResult(key, FAIL, reason=f"empty: shape {array.shape}")
    bad = ~np.isfinite(array)
    if bad.any():
        where = np.argwhere(bad)[0]
        return TapResult(
            key,
            FAIL,
            worst_row=first + int(where[1]),
            reason=f"{bad.sum()} of {array.size} values are NaN or Inf, "
            f"from position {first + where[1]} on",
        )
    return None


def _pools(
    measured: Mapping[str, noise.RowErrors],
) -> list[tuple[str, noise.RowErrors, noise.RowErrors]]:
    """Returns each key with its own rows and with the rows that its rms is judged over."""
    short: dict[str, list[str]] = {}
    for key, rows in measured.items():
        if len(rows.error) < MIN_ROWS_FOR_RMS:
            short.setdefault(taps.split(key)[1], []).append(key)
    pools = {
        tap: noise.RowErrors.join([measured[key] for key in keys]) for tap, keys in short.items()
    }
    return [
        (key, rows, pools[taps.split(key)[1]] if len(rows.error) < MIN_ROWS_FOR_RMS else rows)
        for key, rows in measured.items()
    ]


def _judge(
    key: str,
    rows: noise.RowErrors,
    ratios: np.ndarray,
    pooled: noise.RowErrors,
    limits: Thresholds,
    first: int,
) -> TapResult:
    worst = int(ratios.argmax())
    own, row_ratio = rows.error_ratio, float(ratios[worst])
    reasons = []
    allowed = limits.rms_over(pooled.draws)
    if pooled.error_ratio > allowed and own > allowed:
        together = "" if pooled is rows else f" ({pooled.error_ratio:.3g} over all short steps)"
        reasons.append(f"error ratio {own:.3g}{together}, allowed {allowed:.3g}")
    if row_ratio > limits.row:
        reasons.append(f"position {first + worst}: {row_ratio:.3g}, allowed {limits.row:g}")
    if reasons and first == 0 and 0 <= ratios[0] <= limits.row and len(ratios) > 1:
        reasons.append(POSITION_0_AGREES)
    return TapResult(
        tap=key,
        outcome=FAIL if reasons else PASS,
        error=rows.rms_error,
        floor=rows.rms_floor,
        error_ratio=own,
        row_ratio=row_ratio,
        worst_row=first + worst,
        reason="; ".join(reasons),
    )


def _judge_greedy(
    result: TapResult,
    candidate: Trace,
    oracle: Trace,
    floor: noise.Floor,
    limits: Thresholds,
    first: int,
) -> TapResult:
    key = result.tap
    found = noise.greedy_mismatch(candidate[key], oracle[key], floor[key], limits.row)
    forget(candidate[key], oracle[key])
    if found is None:
        return result
    row, wanted, got, gap, explained = found
    return replace(
        result,
        outcome=FAIL,
        worst_row=first + row,
        reason=(
            f"position {first + row}: greedy token {got}, expected {wanted}; their logits are "
            f"{gap:.3g} apart and rounding explains {explained:.3g}"
        ),
    )
