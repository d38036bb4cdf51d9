"""Compares two float32 runs of one conversation: they may differ only by rounding.

Each of two correct runs is about one floor away from the truth, so they differ by up to the square
root of 2 floors. The floor of a tap at a position is the largest one that the reference shows there
over a pool of conversations (see ``floors``); as in ``noise``, it is never less than the tap's rms.
The limits of the ratios are calibrated: ``invariants`` in ``thresholds.json``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from edgeverify.core import taps
from edgeverify.core.compare import MIN_ROWS_FOR_RMS, Thresholds
from edgeverify.suites.invariants.model import Violation

INDEPENDENT = 2**0.5


@dataclass(frozen=True)
class Played:
    """The output of a session for a conversation.

    Attributes:
        logits: position → (V,) float32, for the steps that return them.
        cache: ``kv.{i}.k|v`` → (n, N, H), the valid rows.
    """

    logits: Mapping[int, np.ndarray]
    cache: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Agreement:
    """How far apart two runs may be.

    Attributes:
        floor: tap → (S,) relative L2 error allowed per position.
        limits: of the ratios.
        seen: the largest ratios so far, ``rms`` and ``row``; for calibration and reports.
    """

    floor: Mapping[str, np.ndarray]
    limits: Thresholds
    seen: dict[str, float] = field(default_factory=lambda: {"rms": 0.0, "row": 0.0})

    def require(self, got: Played, wanted: Played, what: str) -> None:
        """Compares the caches block by block, then the logits of the positions that both have.

        Args:
            got, wanted: runs of the same tokens.
            what: begins the message, e.g. ``"one by one against one prefill"``.

        Raises:
            Violation: another number of rows, a value that is not finite, or a ratio above the
                limits; the message names tap, position and ratio.
        """
        if got.cache.keys() != wanted.cache.keys():
            odd = sorted(got.cache.keys() ^ wanted.cache.keys())
            raise Violation(f"{what}: only one of the two has {', '.join(odd)}")
        for tap, rows in wanted.cache.items():
            if got.cache[tap].shape != rows.shape:
                raise Violation(f"{what}: {tap} is {got.cache[tap].shape}, not {rows.shape}")
            self.require_rows(tap, range(len(rows)), got.cache[tap], rows, what)
        both = sorted(got.logits.keys() & wanted.logits.keys())
        if both:
            left, right = (np.stack([run.logits[at] for at in both]) for run in (got, wanted))
            self.require_rows(taps.LOGITS, both, left, right, what)

    def require_rows(
        self, tap: str, positions: Sequence[int], got: np.ndarray, wanted: np.ndarray, what: str
    ) -> None:
        """Compares the rows of one tap.

        Args:
            tap: ``logits`` or ``kv.{i}.k|v``.
            positions: of the rows.
            got, wanted: (T, ...), one row for each position.
            what: begins the message.

        Raises:
            Violation: as for ``require``.
        """
        rows = np.asarray(positions, np.int64)
        require_finite(tap, rows, got, what)
        require_finite(tap, rows, wanted, what)
        error, floor = self.errors(tap, rows, got, wanted)
        ratios = error / (INDEPENDENT * floor)
        rms = float(np.sqrt(np.mean(error**2)) / (INDEPENDENT * np.sqrt(np.mean(floor**2))))
        worst = int(ratios.argmax())
        self._note(rms if len(rows) >= MIN_ROWS_FOR_RMS else 0.0, float(ratios[worst]))
        if rms > self.limits.rms_over(len(rows)) or ratios[worst] > self.limits.row:
            apart = np.flatnonzero(ratios > self.limits.row)
            told = f"positions {_spans(rows[apart])}" if len(apart) else "all positions together"
            raise Violation(
                f"{what}: {tap} differs at {told}: {ratios[worst]:.3g} times what rounding explains"
                f" at position {rows[worst]} (allowed {self.limits.row:g})"
            )

    def errors(
        self, tap: str, rows: np.ndarray, got: np.ndarray, wanted: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Relative L2 difference per row, and the floor there; both (n,) float64."""
        left = np.asarray(got, np.float64).reshape(len(rows), -1)
        right = np.asarray(wanted, np.float64).reshape(len(rows), -1)
        scale = np.linalg.norm(right, axis=1)
        error = np.linalg.norm(left - right, axis=1) / np.where(scale > 0, scale, 1.0)
        table = self.floor[tap]
        typical = float(np.sqrt(np.mean(table**2)))
        return error, np.maximum(table[rows], typical)

    def _note(self, rms: float, row: float) -> None:
        self.seen["rms"] = max(self.seen["rms"], rms)
        self.seen["row"] = max(self.seen["row"], row)


def require_same(
    got: Mapping[str, np.ndarray], wanted: Mapping[str, np.ndarray], what: str
) -> None:
    """Requires the same bits, tap by tap, row by row.

    Raises:
        Violation: names the first tap that differs, and its rows.
    """
    for tap, rows in wanted.items():
        changed = changed_rows(got[tap], rows)
        if len(changed):
            raise Violation(f"{what}: {tap} changed in rows {_spans(changed)}")


def require_same_logits(
    got: Mapping[int, np.ndarray], wanted: Mapping[int, np.ndarray], what: str
) -> None:
    """Requires the same bits at every position.

    Raises:
        Violation: names the positions that differ.
    """
    odd = sorted(got.keys() ^ wanted.keys())
    if odd:
        raise Violation(f"{what}: only one of the two has logits at positions {_spans(odd)}")
    changed = [at for at in sorted(wanted) if got[at].tobytes() != wanted[at].tobytes()]
    if changed:
        raise Violation(f"{what}: the logits changed at positions {_spans(changed)}")


def changed_rows(got: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The indices of the rows that are not bitwise the same, counted from 0."""
    if not len(wanted):
        return np.array([], np.int64)
    left, right = (np.ascontiguousarray(a).reshape(len(a), -1) for a in (got, wanted))
    return np.flatnonzero((left.view(np.uint32) != right.view(np.uint32)).any(axis=1))


def require_finite(tap: str, rows: np.ndarray, array: np.ndarray, what: str) -> None:
    """Refuses NaN and Inf, which every comparison would accept.

    Raises:
        Violation: names the positions.
    """
    bad = ~np.isfinite(array.reshape(len(rows), -1)).all(axis=1)
    if bad.any():
        raise Violation(f"{what}: {tap} is NaN or Inf at positions {_spans(rows[bad])}")


def _spans(rows: Sequence[int] | np.ndarray) -> str:
    """``0-3, 7``: at most three spans of consecutive rows."""
    spans: list[list[int]] = []
    for row in map(int, rows):
        if spans and row == spans[-1][1] + 1:
            spans[-1][1] = row
        else:
            spans.append([row, row])
    told = [f"{a}" if a == b else f"{a}-{b}" for a, b in spans[:3]]
    return ", ".join(told) + (", …" if len(spans) > 3 else "")
