"""The noise floor: how far a right float32 implementation may be from the oracle.

The oracle is the reference in float64. The floor of a token row is the float32 reference's own
error in that row. The reference runs in float32 in several ways that are equally right (see
``float32``), and the largest of their errors counts. The floor is never less than the error of
rounding the oracle's row to float32, because no float32 result can be closer than that (numbers
below the smallest normal one may become zero). All of it
is measured: a value that float32 represents exactly (an embedding row) has floor zero and must be
matched exactly.

A single row's floor is also a matter of luck: in one row in three, a norm's scale factor happens to
need no rounding. So the row ratio divides by the larger of the row's own floor and the rms floor of
the tap's rows (measured: the worst row of clean runs is 4 to 6 without this rule, 2 with it).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from edgeverify.core.store.mapped import forget

Floor = Mapping[str, np.ndarray]
# The largest of 1e5 normal deviates (a vocabulary of logits) is about 4.4 standard deviations.
LARGEST_OF_MANY = 4.4
SMALLEST_NORMAL = float(np.finfo(np.float32).tiny)
# Values that are compared at a time: 8 MiB in float64, which fits a processor's cache. Copies of
# the logits of a long chunk would otherwise be the largest arrays of a streamed check.
PIECE = 1 << 20


@dataclass(frozen=True)
class RowErrors:
    """Relative errors of one tap, per token row; float64 arrays of shape (rows,).

    Attributes:
        error: L2 norm of candidate - oracle, divided by the norm of the oracle's row.
        floor: the relative error that a float32 implementation may have.
        mark: a number that is equal for equal rows of the oracle; None if all rows count as
            different.
    """

    error: np.ndarray
    floor: np.ndarray
    mark: np.ndarray | None = None

    def ratios(self, typical_floor: float) -> np.ndarray:
        """Returns error / floor per row; 0 where both are zero, inf where only the floor is.

        Args:
            typical_floor: the rms floor of the tap's rows, which replaces any smaller floor.
        """
        return _divide(self.error, np.maximum(self.floor, typical_floor))

    # Each figure is computed once: every decode step needs those of all decode steps' rows.
    @cached_property
    def draws(self) -> int:
        """Counts the rows that differ from each other.

        The same token gives the same row again, up to the first attention, and with it the same
        rounding luck: a greedy answer may repeat one token.
        """
        return len(self.error) if self.mark is None else len(np.unique(self.mark))

    def __getitem__(self, rows: slice | np.ndarray) -> RowErrors:
        mark = None if self.mark is None else self.mark[rows]
        return RowErrors(self.error[rows], self.floor[rows], mark)

    @cached_property
    def rms_error(self) -> float:
        return rms(self.error)

    @cached_property
    def rms_floor(self) -> float:
        return rms(self.floor)

    @cached_property
    def error_ratio(self) -> float:
        """``rms_error`` over ``rms_floor``."""
        error, floor = self.rms_error, self.rms_floor
        if error == 0:
            return 0.0
        if floor == 0:
            return math.nan if math.isnan(error) else math.inf
        return error / floor

    @classmethod
    def join(cls, parts: Sequence[RowErrors]) -> RowErrors:
        """Concatenates the rows of all parts."""
        marks = [part.mark for part in parts if part.mark is not None]
        return cls(
            np.concatenate([part.error for part in parts]),
            np.concatenate([part.floor for part in parts]),
            np.concatenate(marks) if len(marks) == len(parts) else None,
        )


def floor_of(oracle: Mapping[str, np.ndarray], *runs: Mapping[str, np.ndarray]) -> Floor:
    """Returns the floor of every tap that the oracle and all runs have.

    Args:
        oracle: key → (B, T, ...) float64.
        runs: float32 runs of the same model, all equally right.

    Returns:
        Key → relative floor per token row, (B·T,) float64.
    """
    table = {}
    for key, truth in oracle.items():
        if all(key in run for run in runs):
            table[key] = _by_rows(_floors, truth, *(run[key] for run in runs))
            forget(truth, *(run[key] for run in runs))
    return table


def _floors(exact: np.ndarray, *runs: np.ndarray) -> np.ndarray:
    rounded = exact.astype(np.float32).astype(np.float64)
    # XNNPACK's kernels treat smaller numbers as zero, PyTorch's do not.
    rounded[np.abs(rounded) < SMALLEST_NORMAL] = 0.0
    errors = [_norms(run - exact) for run in (rounded, *runs)]
    return np.max(errors, axis=0) / _scale(exact)


def widest(*floors: Floor) -> Floor:
    """Returns the largest of several floors per key and row; the keys are those of the first."""
    return {
        key: np.max([rows, *(other[key] for other in floors[1:] if key in other)], axis=0)
        for key, rows in floors[0].items()
    }


def measure(candidate: np.ndarray, oracle: np.ndarray, floor: np.ndarray) -> RowErrors:
    """Measures the errors per token row.

    Args:
        candidate: (B, T, ...) of any float dtype, finite.
        oracle: (B, T, ...) float64.
        floor: (B·T,), from ``floor_of``.
    """
    error, mark = _by_rows(_errors, candidate, oracle)
    return RowErrors(error, floor, mark)


def _errors(given: np.ndarray, exact: np.ndarray) -> np.ndarray:
    """(2, rows): each row's error, and its mark."""
    # Not the norm, which RoPE does not change: a token at a later position is another row of K.
    return np.stack([_norms(given - exact) / _scale(exact), exact.sum(1)])


def greedy_mismatch(
    candidate: np.ndarray, oracle: np.ndarray, floor: np.ndarray, allowed_ratio: float
) -> tuple[int, int, int, float, float] | None:
    """Finds the first row whose greedy token differs by more than the floor explains.

    A different token is not a failure if the oracle's gap between the two tokens is at most the
    distance by which rounding separates two logits. The row's floor is an L2 norm over V logits. A
    single logit's error is taken as up to ``LARGEST_OF_MANY`` times its rms.

    Args:
        candidate: logits (B, T, V).
        oracle: the same in float64.
        floor: (B·T,), from ``floor_of``.
        allowed_ratio: the row threshold.

    Returns:
        (row, the oracle's token, the candidate's token, gap, explained gap), or None.
    """
    exact, given = _rows(oracle), _rows(candidate)
    floors = np.maximum(floor, rms(floor))
    wanted, got = exact.argmax(1), given.argmax(1)
    for row in np.flatnonzero(wanted != got):
        truth = exact[row].astype(np.float64)
        gap = float(truth[wanted[row]] - truth[got[row]])
        explained = explained_gap(truth, float(floors[row]), allowed_ratio)
        if gap > explained:
            return int(row), int(wanted[row]), int(got[row]), gap, explained
    return None


def explained_gap(logits: np.ndarray, floor: float, allowed_ratio: float) -> float:
    """Returns how far rounding moves two logits of one row apart; see ``greedy_mismatch``.

    Args:
        logits: the logits of one position, (V,).
        floor: the relative floor of that row.
        allowed_ratio: the row threshold.
    """
    typical = floor * float(np.linalg.norm(logits)) / np.sqrt(len(logits))
    return 2 * LARGEST_OF_MANY * allowed_ratio * float(typical)


def _rows(array: np.ndarray) -> np.ndarray:
    return array.reshape(array.shape[0] * array.shape[1], -1)


def _by_rows(figures: Callable[..., np.ndarray], *arrays: np.ndarray) -> np.ndarray:
    """Computes the figures of each row, ``PIECE`` values at a time.

    Args:
        figures: maps float64 arrays (rows, C) → (..., rows); a row's figures do not depend on other
            rows.
        arrays: (B, T, ...) of any float dtype.
    """
    rows = [_rows(array) for array in arrays]
    count, size = rows[0].shape
    step = max(1, PIECE // max(1, size))
    parts = [
        figures(*(np.asarray(given[start : start + step], np.float64) for given in rows))
        for start in range(0, count, step)
    ]
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)


def _scale(rows: np.ndarray) -> np.ndarray:
    norms = _norms(rows)
    return np.where(norms > 0, norms, 1.0)


def _norms(rows: np.ndarray) -> np.ndarray:
    return np.sqrt(np.einsum("rc,rc->r", rows, rows))


def rms(values: np.ndarray) -> float:
    # The same as np.mean, without its checks: this is called 10,000 times a leg.
    return math.sqrt(np.add.reduce(values * values) / len(values))


def _divide(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = numerator / denominator
    return np.where(numerator == 0, 0.0, ratio)
