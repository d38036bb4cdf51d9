"""Judges the blocks of a quantized file by comparing them with the control, row by row.

With the same inputs, a correct kernel gives what the control gives, to float32 rounding, in every
row in which no activation was rounded the other way. The error shows such a row: it is larger than
float rounding, but not larger than the whole cost of rounding activations. Such rows are few where
the rows are short (docs/quantization.md). So the limits of float32 rounding apply to most rows of a
tap, although the file computes in int8.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edgeverify.core import noise, taps
from edgeverify.core.compare import Thresholds
from edgeverify.core.results import FAIL, PASS, TapResult
from edgeverify.core.trace import Trace

# Largest share of a tap's rows that may contain an activation that was rounded the other way. In
# correct files of the seven tiny ports (dynamic int8 and int4, XNNPACK and built-in kernels), the
# most in a tap were 5 % of a prefill's rows and 1 of 8 decode steps. A fault of a kernel or of the
# graph moves all rows that it reaches.
MOST_FLIPPED = 0.5
# If the control's own float32 run has more such rows, float32 limits cannot apply to the tap.
CHAOTIC = 0.25


AFTER_ATTENTION = ("attn.out", "ff_norm", "ff.out", ".out")


@dataclass(frozen=True)
class Control:
    """The control, with the oracle's input fed into each block.

    Attributes:
        exact: in float64.
        float32: a float32 run, which shows in how many rows rounding goes the other way.
        floor: of float32 without any rounding of activations, from ``noise.floor_of``.
    """

    exact: Trace
    float32: Trace
    floor: noise.Floor


def judge(
    alone: Trace,
    control: Control,
    limits: Thresholds,
    expected: Sequence[str],
    starts: Mapping[str, int],
) -> Mapping[str, TapResult]:
    """Judges every tap that the run, the control and the floor have in the same shape.

    Args:
        alone: the file, with the oracle's input fed into each block.
        control: what the file is compared with.
        limits: allowed ratios; a row above the limit for rows counts as rounded the other way.
        expected: the ``step/tap`` keys to be judged.
        starts: step → position of its first token.

    Returns:
        Key → result. Taps that the control cannot predict are not in it.
    """
    known_from = _Predictable(alone, control, limits, expected)
    results: dict[str, TapResult] = {}
    for keys in _pools(expected):
        rows: dict[str, noise.RowErrors] = {}
        predicted = []
        for key in keys:
            found = _errors(alone, control, key)
            other = _errors(control.float32, control, key)
            if found is None or other is None:
                continue
            end = known_from.rows(key, starts)
            if end > 0:
                rows[key] = found[:end]
                predicted.append(other[:end])
        if rows and _flipped(noise.RowErrors.join(predicted), limits).mean() <= CHAOTIC:
            results.update(_judge(rows, limits))
    return results


class _Predictable:
    """How many rows of a tap the control predicts.

    Every later position of the block sees a row of K or V that was rounded the other way. So from
    that row on, the output of attention is no longer known to float32 rounding.
    """

    def __init__(
        self, alone: Trace, control: Control, limits: Thresholds, expected: Sequence[str]
    ) -> None:
        self.first: dict[int, int] = {}
        for key in expected:
            tap = taps.split(key)[1]
            if not tap.startswith("kv."):
                continue
            for run in (alone, control.float32):
                found = _errors(run, control, key)
                if found is None or not (flipped := _flipped(found, limits)).any():
                    continue
                block = taps.block_index(tap)
                assert block is not None
                self.first[block] = min(int(flipped.argmax()), self.first.get(block, sys.maxsize))

    def rows(self, key: str, starts: Mapping[str, int]) -> int:
        step, tap = taps.split(key)
        block = taps.block_index(tap)
        if block is None or not tap.endswith(AFTER_ATTENTION):
            return sys.maxsize
        return self.first.get(block, sys.maxsize) - starts.get(step, 0)


def _judge(
    known: Mapping[str, noise.RowErrors], limits: Thresholds
) -> Iterator[tuple[str, TapResult]]:
    pooled = noise.RowErrors.join(list(known.values()))
    flipped = _flipped(pooled, limits)
    kept, rows = pooled[~flipped if not flipped.all() else flipped], len(flipped)
    ratio = kept.error_ratio
    reason = ""
    if flipped.mean() > MOST_FLIPPED:
        middle = float(np.median(pooled.ratios(pooled.rms_floor)))
        reason = (
            f"{flipped.sum()} of {rows} rows are not what the rounding of activations gives: "
            f"error ratio {middle:.3g} in the middle, allowed {limits.row:g}"
        )
    elif ratio > (allowed := limits.rms_over(kept.draws)):
        reason = f"against the control: error ratio {ratio:.3g}, allowed {allowed:.3g}"
    for key, own in known.items():
        ratios = own.ratios(pooled.rms_floor)
        near = ratios <= limits.row
        shown = own[near].error_ratio if near.any() else None
        if flipped.mean() > MOST_FLIPPED:
            shown = float(np.median(ratios))
        outcome, worst = FAIL if reason else PASS, float(ratios.max())
        yield key, TapResult(key, outcome, error_ratio=shown, row_ratio=worst, reason=reason)


def _flipped(rows: noise.RowErrors, limits: Thresholds) -> np.ndarray:
    """The rows whose error is larger than float32 rounding explains."""
    return rows.ratios(rows.rms_floor) > limits.row


def _pools(expected: Sequence[str]) -> list[list[str]]:
    """Groups the keys that are judged together: one group per tap for the one-row steps."""
    short: dict[str, list[str]] = {}
    pools = []
    for key in expected:
        step, tap = taps.split(key)
        if step.startswith("decode"):
            short.setdefault(tap, []).append(key)
        else:
            pools.append([key])
    return [*pools, *short.values()]


def _errors(run: Trace, control: Control, key: str) -> noise.RowErrors | None:
    """Errors of each row; None if one of the three lacks the tap, or if shapes differ."""
    if key not in run or key not in control.exact or key not in control.floor:
        return None
    array, exact = run[key], control.exact[key]
    if array.shape != exact.shape or not np.isfinite(array).all():
        return None
    return noise.measure(array, exact, control.floor[key])
