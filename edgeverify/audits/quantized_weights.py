"""Compares one quantized weight of a file with the checkpoint's: exactly, value by value.

Rounding to the nearest step moves a weight by half a step at most. This is true in each block and
channel of a correct file, for any recipe. A wrong scale, an exchanged pair of nibbles or another
checkpoint's weight is therefore visible without an arbitrary tolerance.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from edgeverify.audits.promises import MIN_MAX, Promise
from edgeverify.core.results import FAIL, PASS, Check
from edgeverify.litert.flatbuffer import ModelFile
from edgeverify.litert.flatbuffer.graph import Graph
from edgeverify.litert.flatbuffer.quantization import BITS, BLOCK, Quantized, pieces, values

# The quantizer divides in float32: there are at most 127 steps, and each quotient has a relative
# error of 2^-24. The converter's factor in some weights is rounded once more. For the largest error
# seen in correct files see docs/quantization.md.
SLACK = 2.0**-15  # of a step
# A scale is the largest magnitude over the largest integer, in float32. Scales of blocks are
# rounded to bfloat16's eight bits (ai-edge-quantizer, uniform_quantize_tensor.py).
SCALE_SLACK = {BLOCK: 2.0**-8}
FLOAT_SCALE_SLACK = 2.0**-20
SMALLEST_BOUND = 1e-9  # the quantizer takes no smaller magnitude as a block's largest


@dataclass(frozen=True)
class Weight:
    """A weight as the file stores it, and the values that it should represent.

    Attributes:
        tensors: HF names, joined.
        where: place that a check names.
        tensor: the constant's number in the graph.
        quantized: how the weight is stored.
        expected: float32, the checkpoint's values as the converter has them.
        parts: if the weight joins several tensors: name, first row and end of each.
    """

    tensors: str
    where: str
    tensor: int
    quantized: Quantized
    expected: np.ndarray
    parts: tuple[tuple[str, int, int], ...] = ()

    def row(self, index: int) -> str:
        """Names a row, with the tensor that it belongs to."""
        for name, first, end in self.parts:
            if first <= index < end and len(self.parts) > 1:
                return f"row {index} (of {name})"
        return f"row {index}"


def check_weight(
    file: ModelFile, graph: Graph, weight: Weight, promise: Promise | None
) -> list[Check]:
    """Checks how a weight is stored, its scales, and each of its values.

    Args:
        file, graph: where the weight is.
        weight: the weight to check.
        promise: promise of the recipe; None if the recipe is not known.
    """
    kept = describe(weight.quantized)
    if promise is not None and kept != str(promise):
        return [Check(weight.tensors, weight.where, FAIL, str(promise), kept)]
    shape = tuple(graph.shape(weight.tensor))
    if shape != weight.expected.shape:
        shapes = [f"({', '.join(map(str, a))})" for a in (weight.expected.shape, shape)]
        return [Check(weight.tensors, weight.where, FAIL, *shapes)]

    def held(rows: slice) -> np.ndarray:
        return values(file, graph, weight.tensor, rows)

    if "float" in weight.quantized.dtype:
        return [_cast(weight, held(slice(None)))]
    problem = _unusable(weight, promise)
    if not problem:
        otherwise = _chosen_otherwise(weight, promise)
        problem = "" if otherwise else _scales(weight, _symmetric(weight, promise))
        problem = problem or _values(weight, held, cut_off=otherwise)
    if problem:
        return [Check(weight.tensors, weight.where, FAIL, "", "", problem)]
    return [Check(weight.tensors, weight.where, PASS, reason=kept)]


def describe(quantized: Quantized) -> str:
    """Returns, e.g., ``int4 in blocks of 32``, in the words of a promise."""
    return str(Promise(quantized.dtype, quantized.granularity, quantized.block_size))


def _cast(weight: Weight, held: np.ndarray) -> Check:
    """Checks that a float16 weight is the checkpoint's, rounded to nearest, bit by bit."""
    with np.errstate(over="ignore"):
        right = weight.expected.astype(np.float16).astype(np.float64)
    if weight.quantized.dtype != "float16":
        found = weight.quantized.dtype
        return Check(weight.tensors, weight.where, FAIL, "float16", found, "is not checked so far")
    wrong = ~((held == right) & np.isfinite(held))
    if not wrong.any():
        return Check(weight.tensors, weight.where, PASS, reason="float16")
    at = tuple(int(i) for i in np.argwhere(wrong)[0])
    told = f"{wrong.sum()} of {wrong.size} values are not the nearest float16"
    if not np.isfinite(held).all():
        told += f"; {(~np.isfinite(held)).sum()} are not finite: beyond float16's 65504"
    return Check(
        weight.tensors, weight.where, FAIL, f"{right[at]!s} at {list(at)}", f"{held[at]!s}", told
    )


def _rows(weight: Weight) -> np.ndarray:
    """Returns the expected values with one row for each scale."""
    quantized, expected = weight.quantized, weight.expected
    if quantized.granularity == BLOCK:
        return expected.reshape(quantized.scales.size, -1)
    if quantized.scales.size == 1:
        return expected.reshape(1, -1)
    return np.moveaxis(expected, quantized.axis, 0).reshape(quantized.scales.size, -1)


def _unusable(weight: Weight, promise: Promise | None) -> str:
    """Reports scales and zero points that no weight can have, or returns ""."""
    scales, points = weight.quantized.scales.reshape(-1), weight.quantized.zero_points.reshape(-1)
    bad = ~(np.isfinite(scales) & (scales > 0))
    if bad.any():
        first = int(np.flatnonzero(bad)[0])
        return f"{bad.sum()} of {scales.size} scales are zero, negative or not finite: " + _named(
            weight, first, f"{scales[first]:.6g}"
        )
    if promise is not None and promise.symmetric and points.any():
        first = int(np.flatnonzero(points)[0])
        return (
            f"{np.count_nonzero(points)} of {points.size} zero points are not 0, as a symmetric "
            "recipe has it: " + _named(weight, first, f"{points[first]}")
        )
    return ""


def _odd_scales(weight: Weight, symmetric: bool) -> tuple[np.ndarray, np.ndarray]:
    """Returns the scales that the weights' range gives, and which of the file's scales differ."""
    quantized, rows = weight.quantized, _rows(weight)
    if symmetric:
        reach = np.abs(rows).max(1).astype(np.float64)
    else:  # from the smallest to the largest, 0 included
        reach = rows.max(1).clip(0).astype(np.float64) - rows.min(1).clip(max=0)
    right = np.maximum(reach, SMALLEST_BOUND) / _integers(quantized, symmetric)
    slack = SCALE_SLACK.get(quantized.granularity, FLOAT_SCALE_SLACK)
    # If a block's values are nearly 0, its scale is a subnormal float16, in steps of 2^-24.
    allowed = slack * right + (2.0**-25 if quantized.granularity == BLOCK else 0)
    return right, np.abs(quantized.scales.reshape(-1) - right) > allowed


def _integers(quantized: Quantized, symmetric: bool) -> int:
    """Returns into how many steps the range of a scale is divided."""
    bits = BITS[quantized.dtype]
    return _highest(bits) if symmetric else 2**bits - 1


def _symmetric(weight: Weight, promise: Promise | None) -> bool:
    return not weight.quantized.zero_points.any() if promise is None else promise.symmetric


def _scales(weight: Weight, symmetric: bool) -> str:
    """Reports the scales that do not fit the weights' range, or returns ""."""
    right, odd = _odd_scales(weight, symmetric)
    if not odd.any():
        return ""
    first = int(np.flatnonzero(odd)[0])
    scale = weight.quantized.scales.reshape(-1)[first]
    reach = "largest magnitude" if symmetric else "range"
    steps = _integers(weight.quantized, symmetric)
    told = f"scale {scale:.6g}, should be {right[first]:.6g}, its {reach} over {steps}"
    ratio = scale / right[first]
    factor = f" (× {ratio:.3g})" if abs(ratio - 1) > 0.01 else f" (× {ratio:.7g})"
    return f"{odd.sum()} of {odd.size} scales do not fit their weights: " + _named(
        weight, first, told + factor
    )


def _chosen_otherwise(weight: Weight, promise: Promise | None) -> bool:
    """Whether scales deliberately do not reach the largest weight: OCTAV and MSE clip some.

    Without a recipe, this is assumed if most of the scales do not fit the weights' range.
    """
    if promise is not None:
        return promise.algorithm != MIN_MAX
    return bool(_odd_scales(weight, _symmetric(weight, None))[1].mean() > 0.5)


def _within(quantized: Quantized, expected: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """Clips the expected values to the range of the integers."""
    bits, points = BITS[quantized.dtype], quantized.zero_points
    if points.any():
        return expected  # algorithms that clip are symmetric
    # With 8 bits and more the quantizer does not use the lowest integer (uniform_quantize).
    lowest = -_highest(bits) - (bits < 8)
    return expected.clip(lowest * steps, _highest(bits) * steps)


def _highest(bits: int) -> int:
    return int(2 ** (bits - 1) - 1)


def _values(weight: Weight, held: Callable[[slice], np.ndarray], *, cut_off: bool) -> str:
    """Reports the values that are off by more than half a step, or returns "".

    With ``cut_off``, values beyond the range of the integers must be at its end.
    """
    shape, odd, furthest, first = weight.expected.shape, 0, 0.0, ""
    for rows in pieces(shape):
        found, expected = held(rows), weight.expected[rows]
        steps = _steps(weight.quantized, shape, rows)
        aim = _within(weight.quantized, expected, steps) if cut_off else expected
        off = np.abs(found - aim) / steps
        wrong = off > 0.5 + SLACK
        if not wrong.any():
            continue
        if not odd:
            at = tuple(int(i) for i in np.argwhere(wrong)[0])
            first = (
                f"{weight.row(rows.start + at[0])}, column {at[-1]}: "
                f"{found[at]:.6g} for {expected[at]:.6g}, {off[at]:.3g} steps"
            )
        odd += int(wrong.sum())
        furthest = max(furthest, float(off.max()))
    if not odd:
        return ""
    return (
        f"{odd} of {weight.expected.size} values are more than half a step from the checkpoint's, "
        f"the first in {first}; the furthest {furthest:.3g} steps"
    )


def _steps(quantized: Quantized, shape: tuple[int, ...], rows: slice) -> np.ndarray:
    """Returns the scale of each value of some rows, without repeating equal scales."""
    if quantized.granularity == BLOCK:
        scales = quantized.scales.reshape(shape[0], -1)[rows]
        steps: np.ndarray = np.repeat(scales, quantized.block_size or 1, axis=1)
        return steps.reshape(len(scales), *shape[1:])
    along = [1] * len(shape)
    if quantized.scales.size == 1:
        return quantized.scales.reshape(along)
    along[quantized.axis] = -1
    return quantized.scales[rows if quantized.axis == 0 else slice(None)].reshape(along)


def _named(weight: Weight, scale: int, told: str) -> str:
    """Puts before a scale's text the row and block that it is for."""
    quantized = weight.quantized
    if quantized.granularity == BLOCK:
        row, block = divmod(scale, quantized.scales.shape[1])
        size = quantized.block_size or 1
        columns = f"columns {block * size} to {(block + 1) * size - 1}"
        return f"{weight.row(row)}, block {block} ({columns}): {told}"
    return f"{weight.row(scale)}: {told}" if quantized.scales.size > 1 else told
