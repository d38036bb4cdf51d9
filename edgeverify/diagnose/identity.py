"""Diagnoses taps that fail before any value is compared: another dtype, or another shape.

These diagnoses are measured, too: the values that exist are compared with the oracle's.
"""

from __future__ import annotations

import numpy as np

from edgeverify.core.compare import thresholds
from edgeverify.diagnose.scene import Scene
from edgeverify.diagnose.search import Cause

# The largest relative error of rounding to a format.
UNITS = {"bfloat16": 2.0**-8, "float16": 2.0**-11, "float64": 0.0, "float32": 0.0}
Said = tuple[str, str, np.ndarray, np.ndarray, str]


def cause(scene: Scene, tap: str) -> Cause | None:
    """Names what is wrong with the form of a tap if the values that exist are correct.

    Args:
        scene: the port.
        tap: without its step; its form prevents a comparison.
    """
    found: dict[tuple[str, str], float] = {}
    for step in scene.case.steps:
        key = f"{step.name}/{tap}"
        # The last row of a padded step is a pad row, which the oracle does not have.
        padded = step.length > len(step.tokens)
        if key not in scene.failed or key not in scene.port or padded:
            continue
        said = _form(scene.port[key], scene.oracle[key])
        if said is None:
            return None
        kind, text, mine, right, dtype = said
        floor = scene.floor[key][-right.shape[1] :]
        ratio = _ratio(mine, right, np.maximum(floor, UNITS[dtype]))
        if ratio > thresholds("isolated").row:
            return None
        found[kind, text] = max(ratio, found.get((kind, text), 0.0))
    if len(found) != 1:
        return None
    ((kind, text), ratio) = next(iter(found.items()))
    return Cause(tap, kind, text, ratio)


def _form(mine: np.ndarray, right: np.ndarray) -> Said | None:
    """Returns the kind, the text, the values on both sides, and the port's dtype."""
    dtype = str(mine.dtype)
    if dtype == "|V2":  # bfloat16, which numpy lacks
        mine = (mine.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
        dtype = "bfloat16"
    if mine.shape == right.shape and dtype in UNITS and dtype != "float32":
        return "dtype", f"dtype {dtype} → float32", mine, right, dtype
    if dtype != "float32" or mine.ndim != 3 or right.ndim != 3:
        return None
    (rows, width), (count, columns) = right.shape[1:], mine.shape[1:]
    if columns == width and 0 < count < rows:
        several = "" if count == 1 else f" {count}"
        text = f"only the last{several} of a step's positions returned → all"
        return "shape", text, mine, right[:, -count:], dtype
    if count == rows and columns > width:
        text = f"{columns - width} more columns than the vocabulary has → none"
        return "shape", text, mine[..., :width], right, dtype
    return None


def _ratio(mine: np.ndarray, right: np.ndarray, floor: np.ndarray) -> float:
    """Returns the worst row's error over its allowed error."""
    if not np.isfinite(mine.astype(np.float64)).all():
        return float("inf")
    error = np.linalg.norm((mine.astype(np.float64) - right)[0], axis=-1)
    error = error / np.maximum(np.linalg.norm(right[0], axis=-1), 1e-30)
    return float((error / np.maximum(floor, 1e-30)).max())
