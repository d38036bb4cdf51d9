"""Judges whether a cost grows linearly: a least-squares line, and the excess of the largest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Line:
    """``cost = start + slope · size``.

    Attributes:
        start: the part of the cost that does not depend on the size.
        slope: the cost of one more unit of size.
        r2: the share of the variance that the line explains.
    """

    start: float
    slope: float
    r2: float

    def at(self, size: float) -> float:
        """Returns the line's cost at ``size``."""
        return self.start + self.slope * size


def fit(sizes: Sequence[float], costs: Sequence[float]) -> Line:
    """Fits the least-squares line, by ``numpy.linalg.lstsq``.

    Raises:
        ValueError: fewer than two different sizes, or not one cost for each.
    """
    if len(set(sizes)) < 2 or len(sizes) != len(costs):
        raise ValueError(f"no line through {len(costs)} costs at the sizes {list(sizes)}")
    x, y = np.asarray(sizes, float), np.asarray(costs, float)
    (start, slope), *_ = np.linalg.lstsq(np.stack([np.ones_like(x), x], axis=1), y, rcond=None)
    rest = float(np.sum((y - start - slope * x) ** 2))
    spread = float(np.sum((y - y.mean()) ** 2))
    return Line(float(start), float(slope), 1 - rest / spread if spread else 1.0)


def growth(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """Divides the cost of the largest size by what the line through the smaller ones predicts.

    1 is linear growth. ``cost = size²`` gives 1.7 and more if each size doubles the one before.

    Raises:
        ValueError: there are fewer than three sizes, or no two different ones besides the largest.
    """
    order = np.argsort(sizes)
    smaller = [int(index) for index in order[:-1]]
    line = fit([sizes[i] for i in smaller], [costs[i] for i in smaller])
    return costs[order[-1]] / line.at(sizes[order[-1]])
