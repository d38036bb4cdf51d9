"""Judges one trace against a baseline: identity first, then values, tap by tap.

Nothing is skipped. A tap that is missing, extra, not finite, or of another shape or dtype fails
before its values are compared. A tap that could not be read is ``unchecked``. A comparison of
nothing is an error.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from types import MappingProxyType

import numpy as np

from edgeverify.core import noise, profile, taps
from edgeverify.core.errors import TraceError
from edgeverify.core.leg import Leg
from edgeverify.core.representation import excuse
from edgeverify.core.results import (
    FAIL,
    PASS,
    UNCHECKED,
    Divergence,
    LegResult,
    TapResult,
    worst_outcome,
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
class Baseline:
    """The runs and floors that a candidate is compared with.

    Attributes:
        oracle: the exact values, float64.
        floor: the error that a right float32 run may have, from ``noise.floor_of``.
        isolated_floor: the same for the run that feeds each block with the oracle's input.
        own: the reference's own float32 run.
    """

    oracle: Trace
    floor: noise.Floor
    isolated_floor: noise.Floor
    own: Trace


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


def judge_leg(
    leg: Leg,
    candidate: Trace,
    isolated: Trace | None,
    baseline: Baseline,
    expected: Sequence[str],
    starts: Mapping[str, int] = NOWHERE,
    *,
    notes: tuple[str, ...] = (),
) -> LegResult:
    """Judges a leg: the whole run and, if there is one, the block-by-block run.

    Args:
        leg: the leg that is judged.
        candidate: the run to be judged.
        isolated: the same run with each block fed with the oracle's input, or None.
        baseline: what both runs are compared with.
        expected, starts: as in ``compare``.
        notes: copied into the result.
    """
    limits, block_limits = thresholds(leg.kind), thresholds("isolated")
    rows: dict[str, np.ndarray] = {}
    whole = compare(candidate, baseline.oracle, baseline.floor, limits, expected, starts, rows)
    results = list(whole)
    if isolated is not None:
        alone = compare(
            isolated, baseline.oracle, baseline.isolated_floor, block_limits, expected, starts
        )
        by_key = {result.tap: result for result in alone}
        results = [_with_isolated(result, by_key.pop(result.tap, None)) for result in results]
        results += by_key.values()  # what only the block-by-block run has: extra taps
    results, note = excuse(results, candidate, starts)
    result = leg_of(leg, results, (*notes, note) if note else notes)
    return replace(result, along=profile.along(rows, starts))


def leg_of(leg: Leg, results: Sequence[TapResult], notes: tuple[str, ...] = ()) -> LegResult:
    """Returns the result of a leg from its judged taps, which are in forward order."""
    outcome = worst_outcome([result.outcome for result in results])
    return LegResult(
        leg=leg,
        outcome=outcome,
        threshold=thresholds(leg.kind).as_dict(),
        taps=tuple(results),
        worst=_worst(results),
        first_divergence=_first_divergence(results),
        reason=_unchecked_reason(results) if outcome == UNCHECKED else "",
        notes=notes,
    )


def _with_isolated(result: TapResult, alone: TapResult | None) -> TapResult:
    if alone is None:
        return result
    reasons = [result.reason] if result.reason else []
    if alone.outcome != PASS and alone.reason not in reasons:
        reasons.append(f"with its block fed by the oracle: {alone.reason}")
    return replace(
        result,
        outcome=worst_outcome([result.outcome, alone.outcome]),
        isolated_ratio=alone.error_ratio,
        isolated_row_ratio=alone.row_ratio,
        isolated_outcome=alone.outcome,
        reason="; ".join(reasons),
    )


def _worst(results: Sequence[TapResult]) -> TapResult | None:
    """Returns the result nearest to or furthest past its limits.

    A failure without a ratio is the worst.
    """
    broken = [r for r in results if r.outcome == FAIL and r.error_ratio is None]
    if broken:
        return broken[0]
    measured = [r for r in results if r.error_ratio is not None and r.row_ratio is not None]
    many = [r for r in measured if not taps.split(r.tap)[0].startswith("decode")] or measured
    return max(many, key=lambda r: r.error_ratio or 0.0, default=None)


def _first_divergence(results: Sequence[TapResult]) -> Divergence | None:
    failed = [result for result in results if result.outcome == FAIL]
    if not failed:
        return None
    first = failed[0]
    ratios = [ratio for ratio in (first.error_ratio, first.isolated_ratio) if ratio is not None]
    isolated: dict[int, str] = {}
    for result in failed:
        if result.isolated_outcome == FAIL:
            tap = taps.split(result.tap)[1]
            isolated.setdefault(_segment(tap), tap)
    named = tuple(tap for _, tap in sorted(isolated.items()))
    return Divergence(first.tap, max(ratios, default=float("inf")), named)


def _segment(tap: str) -> int:
    """Numbers what the oracle feeds as one: embedding, each block, final norm with head."""
    block = taps.block_index(tap)
    if block is not None:
        return block
    return -1 if tap == taps.EMBED else sys.maxsize


def _unchecked_reason(results: Sequence[TapResult]) -> str:
    unchecked = [result for result in results if result.outcome == UNCHECKED]
    reasons = list(dict.fromkeys(result.reason for result in unchecked))
    more = f" (and {len(reasons) - 1} more reasons)" if len(reasons) > 1 else ""
    return f"{len(unchecked)} taps unchecked: {reasons[0]}{more}"
