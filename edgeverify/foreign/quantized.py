"""Where a quantized file is handed over: the one place that the leg ``quantization`` comes from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgeverify.report.model import UNCHECKED, LegResult

LEG = "quantization"
_FLOAT = "float32"


def is_quantized(weights: Mapping[str, Any]) -> bool:
    """Whether a file keeps weights as anything but float32.

    Args:
        weights: dtype → totals, of ``inspection.weights.totals``.
    """
    return any(dtype != _FLOAT for dtype in weights)


def judge(weights: Mapping[str, Any]) -> LegResult:
    """The leg of a quantized file: never a pass without a comparison.

    Args:
        weights: as for ``is_quantized``.
    """
    kept = ", ".join(
        f"{total['elements']:,} weights as {dtype}" for dtype, total in weights.items()
    )
    reason = f"the file is quantized ({kept}), and no recipe to hold it against was given"
    return LegResult(LEG, UNCHECKED, {}, reason=reason)
