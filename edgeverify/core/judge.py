"""Judges a leg: all taps of its runs against a baseline, and the outcome that follows from them."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from edgeverify.core import noise, profile, taps
from edgeverify.core.compare import NOWHERE, compare, thresholds
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
from edgeverify.core.trace import Trace

# A relative floor that only a row of numbers below the smallest normal one has.
FLUSHED = 0.5
REDRAWN = "near its limits, so judged with more float32 runs of the reference"
# A failure by more than this factor stands without more float32 runs. More runs widened a floor by
# at most 3.2 (docs/measurements.md, "Outliers").
WIDEST = 30.0


@dataclass(frozen=True)
class Baseline:
    """The runs and floors that a candidate is compared with.

    Attributes:
        oracle: the exact values, float64.
        floor: the error that a right float32 run may have, from ``noise.floor_of``.
        isolated_floor: the same for the run that feeds each block with the oracle's input.
        own: the reference's own float32 run.
        redraw: returns the same baseline with floors from more float32 runs; None if there are no
            more. See ``judge_surely``.
    """

    oracle: Trace
    floor: noise.Floor
    isolated_floor: noise.Floor
    own: Trace
    redraw: Callable[[], Baseline] | None = None


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
    results, excused = excuse(results, candidate, starts)
    notes = (*notes, *filter(None, (excused, _flushed(results))))
    result = leg_of(leg, results, notes)
    return replace(result, along=profile.along(rows, starts))


def _flushed(results: Sequence[TapResult]) -> str:
    """Names the taps whose values are so small that a kernel may return zero for them."""
    small = [result.tap for result in results if (result.floor or 0.0) > FLUSHED]
    if not small:
        return ""
    more = f" and {len(small) - 1} more taps" if len(small) > 1 else ""
    return (
        f"{small[0]}{more}: values below {noise.SMALLEST_NORMAL:.2g}, float32's smallest normal "
        "number, which kernels treat as zero; so zeros count as right there"
    )


def judge_surely(
    judge: Callable[[Baseline], LegResult], baseline: Baseline
) -> tuple[LegResult, Baseline]:
    """Judges; a failure near the limits counts only if more float32 runs do not explain it.

    The floor is an estimate from a few float32 runs. It is a good one where an error is the sum of
    many roundings. Where one value dominates a row, as the outliers of trained models do, the error
    is that of a few roundings, and these runs may all have been lucky.

    Args:
        judge: judges against a baseline.
        baseline: what is judged against first.

    Returns:
        The result, and the baseline that it was reached with.
    """
    result = judge(baseline)
    if baseline.redraw is None or not _near(result):
        return result, baseline
    wider = baseline.redraw()
    result = judge(wider)
    return replace(result, notes=(*result.notes, REDRAWN)), wider


def _near(leg: LegResult) -> bool:
    """Whether each failure of a leg is a ratio that is not far above what is allowed."""
    failed = [tap for tap in leg.taps if tap.outcome == FAIL]
    return bool(failed) and all(_excess(tap, leg.threshold) <= WIDEST for tap in failed)


def _excess(tap: TapResult, limits: Mapping[str, float]) -> float:
    """Returns a tap's largest ratio over its limit; inf for a tap that fails without a ratio."""
    if tap.error_ratio is None and tap.isolated_ratio is None:
        return math.inf
    of_rms = max(tap.error_ratio or 0.0, tap.isolated_ratio or 0.0) / limits["rms"]
    of_row = max(tap.row_ratio or 0.0, tap.isolated_row_ratio or 0.0) / limits["row"]
    return max(of_rms, of_row)


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
