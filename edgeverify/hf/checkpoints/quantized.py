"""Refuses checkpoints that are stored quantized, and says by which method.

What decides is how the model's weights are stored, not the key ``quantization_config``: that stays
behind in checkpoints that were dequantized, and is missing from others.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgeverify.core.errors import CheckpointError
from edgeverify.hf.checkpoints.expected import READABLE_DTYPES, Entry, Expected

_KEYS = ("quantization_config", "compression_config", "quantization")
# last part of a tensor's name → the methods that write it
_MARKS = {
    "qweight": "AWQ or GPTQ",
    "g_idx": "GPTQ",
    "weight_packed": "compressed-tensors",
    "absmax": "bitsandbytes",
    "quant_map": "bitsandbytes",
    "SCB": "bitsandbytes",
    "weight_scale_inv": "fp8",
    "weight_scale": "compressed-tensors or ModelOpt",
    "blocks": "MXFP4",
    "scales": "AWQ, GPTQ or MLX",
    "_scale": "quanto",
}


def refuse_quantized(
    expected: Expected, entries: Mapping[str, Entry], config: Mapping[str, Any], where: Path
) -> None:
    """Refuses a checkpoint whose matrices are stored as integers or as 8-bit floats.

    Args:
        expected: the model's tensors.
        entries: the checkpoint's.
        config: its ``config.json``.
        where: the checkpoint, for messages.

    Raises:
        CheckpointError: a matrix of the model is quantized; names the method.
    """
    for name, shape in expected.shapes.items():
        if len(shape) < 2:
            continue
        evidence = _evidence(name, entries)
        if evidence is not None:
            raise CheckpointError(
                f"the checkpoint is quantized ({_method(config, entries)}): {evidence}",
                where=where,
                expected="weights in " + ", ".join(READABLE_DTYPES),
                fix="take the unquantized checkpoint, from which this one was made",
            )


def _evidence(name: str, entries: Mapping[str, Entry]) -> str | None:
    """Says what stands in the place of a matrix, if that is not the matrix itself."""
    own = entries.get(name)
    if own is not None:
        narrow = own.dtype not in READABLE_DTYPES
        return f"{name!r} is stored in {own.dtype}" if narrow else None
    stem = name.removesuffix("weight")
    parts = [other for other in entries if other.startswith(stem)]
    packed = [other for other in parts if entries[other].dtype not in READABLE_DTYPES]
    if not packed or stem == name:
        return None
    return f"in the place of {name!r} there is {packed[0]!r} in {entries[packed[0]].dtype}"


def _method(config: Mapping[str, Any], entries: Mapping[str, Entry]) -> str:
    for key in _KEYS:
        told = config.get(key)
        if isinstance(told, dict):
            method = told.get("quant_method") or told.get("quant_algo") or told.get("mode")
            bits = told.get("bits")
            named = str(method) if method else "of a method that is not named"
            return f"{named}{f', {bits} bits' if bits else ''}, says {key} in config.json"
    ends = {name.rpartition(".")[2] for name in entries}
    for mark, method in _MARKS.items():
        if mark in ends:
            return f"{method}, by its tensors {mark!r}"
    return "by a method that config.json does not name"
