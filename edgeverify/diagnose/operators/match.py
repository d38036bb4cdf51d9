"""Finds the value of the model that equals an operator's output.

Both sides are computed in float64, so only constants may differ: those that the converter folded
and rounded to float32.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np

from edgeverify.diagnose.operators.model_values import ModelValue

# Relative to the largest value of the row. The largest difference in the clean files of seven
# ports, both layouts, is 9.5e-8: one or two roundings to float32 (2^-24 = 6e-8).
ROUNDING = 3e-7
# The converter writes -inf in a mask as float32's lowest number, -3.4e38; sums with it are near it.
UNBOUNDED = 1e38
LARGEST_RANK_MOVED = 5  # 120 orders of the axes


def difference(array: np.ndarray, truth: np.ndarray) -> float:
    """Returns the largest difference of any element, over the largest value of its row (last axis).

    Masked places (±inf, or float32's lowest number) must be the same on both sides.

    Returns:
        0 for equal arrays, inf if they cannot be compared. Integers differ by 0 or inf.
    """
    if array.shape != truth.shape or array.dtype.kind != truth.dtype.kind:
        return np.inf
    if truth.dtype.kind != "f":
        return 0.0 if np.array_equal(array, truth) else np.inf
    if truth.size == 0:
        return 0.0
    masked = ~(np.abs(truth) < UNBOUNDED)
    if masked.any():
        same = np.array_equal(~(np.abs(array) < UNBOUNDED), masked) and np.array_equal(
            np.sign(array[masked]), np.sign(truth[masked]), equal_nan=True
        )
        if not same:
            return np.inf
        array, truth = np.where(masked, 0, array), np.where(masked, 0, truth)
    scale = np.abs(truth).max(-1, keepdims=True) if truth.ndim else np.abs(truth)
    apart = np.abs(array - truth) / np.where(scale > 0, scale, 1)
    largest = float(apart.max())
    return largest if largest == largest else np.inf


class ValueIndex:
    """An index of the model's values by shape and content.

    Axes of length 1 are ignored, because they move no element.
    """

    def __init__(self, values: Sequence[ModelValue]) -> None:
        self._groups: dict[tuple[str, tuple[int, ...]], _Group] = {}
        self._sizes: dict[int, list[_Group]] = {}
        self._order: dict[int, int] = {}
        numbered = list(enumerate(values))
        floats = [(n, _as_float(v)) for n, v in numbered if v.array.dtype.kind in "iu"]
        self._kept = [*numbered, *floats]  # kept alive, because they are identified by id()
        self._cast = {id(value) for _, value in floats}
        for number, value in self._kept:
            self._order[id(value)] = number
            array = value.array.squeeze()
            key = (array.dtype.kind, array.shape)
            if key not in self._groups:
                self._groups[key] = _Group(array.shape)
                self._sizes.setdefault(array.size, []).append(self._groups[key])
            self._groups[key].add(value, array)
        parts: dict[tuple[int, ...], _Group] = {}
        for value in values:
            for part in _repeated_parts(value.array.squeeze()):
                if part.shape not in parts:
                    parts[part.shape] = _Group(part.shape)
                    self._sizes.setdefault(part.size, []).append(parts[part.shape])
                parts[part.shape].add(value, part)

    def find(self, array: np.ndarray) -> ModelValue | None:
        """Returns the model's value that equals ``array``, with its elements in the same order."""
        squeezed = array.squeeze()
        group = self._groups.get((squeezed.dtype.kind, squeezed.shape))
        return None if group is None else group.find(squeezed)

    def like(self, shape: tuple[int, ...], kind: str) -> tuple[ModelValue, ...]:
        """Returns the distinct values of this shape; for floats, without integers cast to float."""
        group = self._groups.get((kind, tuple(n for n in shape if n != 1)))
        return () if group is None else tuple(v for v in group.values if id(v) not in self._cast)

    def order(self, value: ModelValue) -> int:
        """Returns the position of one of these values in the order of the computation."""
        return self._order[id(value)]

    def moved(self, array: np.ndarray) -> bool:
        """Whether ``array`` is a value of the model that was reordered, regrouped or not repeated.

        The converter moves such operations across those that come before or after them.
        """
        squeezed = array.squeeze()
        for group in self._sizes.get(squeezed.size, ()):
            if group.find(squeezed.reshape(group.shape)) is not None:
                return True
            if squeezed.ndim > LARGEST_RANK_MOVED or sorted(group.shape) != sorted(squeezed.shape):
                continue
            for order in itertools.permutations(range(squeezed.ndim)):
                turned = squeezed.transpose(order)
                if turned.shape == group.shape and group.find(turned) is not None:
                    return True
        return False


def _as_float(value: ModelValue) -> ModelValue:
    """Casts integers: PyTorch computes with integers and floats together, a file casts first."""
    return replace(value, array=value.array.astype(np.float64))


def _repeated_parts(array: np.ndarray) -> Iterator[np.ndarray]:
    """Yields the repeated part, for each axis along which a float array repeats itself."""
    if array.dtype.kind == "f" and array.ndim > 1 and array.size:
        for axis in range(array.ndim):
            first = array.take([0], axis)
            if np.array_equal(array, np.broadcast_to(first, array.shape)):
                yield first.squeeze()


class _Group:
    """Values of one shape, each stored once."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape
        self.values: list[ModelValue] = []
        self._arrays: list[np.ndarray] = []
        self._sums: list[float] = []

    @cached_property
    def _weights(self) -> np.ndarray:
        count = int(np.prod(self.shape, dtype=np.int64))
        return np.random.default_rng(count).uniform(0.5, 1.5, count)

    def _sum(self, array: np.ndarray) -> tuple[float, float]:
        """Returns a weighted sum that separates unequal arrays quickly, and its tolerance."""
        flat = array.reshape(-1).astype(np.float64)
        flat = np.where(np.abs(flat) < UNBOUNDED, flat, 0)
        largest = float(np.abs(flat).max(initial=0))
        return float(flat @ self._weights), 2 * ROUNDING * largest * float(self._weights.sum())

    def add(self, value: ModelValue, array: np.ndarray) -> None:
        if self.find(array) is None:
            self.values.append(value)
            self._arrays.append(array)
            self._sums.append(self._sum(array)[0])

    def find(self, array: np.ndarray) -> ModelValue | None:
        if not self.values:
            return None
        total, slack = self._sum(array)
        near = np.flatnonzero(np.abs(np.array(self._sums) - total) <= slack)
        for number in near:
            if difference(array, self._arrays[number]) <= ROUNDING:
                return self.values[number]
        return None
