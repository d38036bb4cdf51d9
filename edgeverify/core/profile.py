"""Shows how a leg's error develops along the conversation: one short series per block.

A fault of RoPE grows with the position. A fault of a sliding window begins where the window ends. A
fault of the cache begins with the second chunk. The rms of a tap shows none of this.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from edgeverify.core import taps

HEAD = "head"
# A curve on a screen shows no more positions than this, and the report stays small: 26 blocks of
# 4,096 positions would be 1 MB.
MOST = 256


def along(
    rows: Mapping[str, np.ndarray], starts: Mapping[str, int]
) -> dict[str, tuple[float | None, ...]]:
    """Returns the largest row ratio of each block at each position.

    Args:
        rows: ``step/tap`` → ratio per row, (rows,) float64.
        starts: step → position of its first row.

    Returns:
        ``embed``, ``0``, ``1``, …, ``head`` (final norm and logits) → one ratio with three digits
        per position, None where no tap of the block was measured. If there are more than ``MOST``
        positions, neighbours are merged, as many as necessary, and each value is their largest. All
        series are equally long.
    """
    end = max(
        (_first(key, starts) + len(ratios) for key, ratios in rows.items()),
        default=0,
    )
    found: dict[str, np.ndarray] = {}
    for key, ratios in rows.items():
        first = _first(key, starts)
        series = found.setdefault(_place(key), np.full(end, -math.inf))
        span = series[first : first + len(ratios)]
        np.maximum(span, ratios, out=span)
    width = max(1, -(-end // MOST))
    return {place: _binned(found[place], width) for place in sorted(found, key=_order)}


def _binned(series: np.ndarray, width: int) -> tuple[float | None, ...]:
    padded = np.pad(series, (0, -len(series) % width), constant_values=-math.inf)
    largest = padded.reshape(-1, width).max(axis=1)
    return tuple(None if value == -math.inf else float(f"{value:.3g}") for value in largest)


def _first(key: str, starts: Mapping[str, int]) -> int:
    """Returns the position of a tap's first row; a cache's first row is always position 0."""
    step, tap = taps.split(key)
    return 0 if tap.startswith("kv.") else starts.get(step, 0)


def _place(key: str) -> str:
    tap = taps.split(key)[1]
    block = taps.block_index(tap)
    if block is not None:
        return str(block)
    return tap if tap == taps.EMBED else HEAD


def _order(place: str) -> tuple[int, int]:
    if place.isdigit():
        return 1, int(place)
    return (0, 0) if place == taps.EMBED else (2, 0)
