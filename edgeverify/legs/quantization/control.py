"""The control: the reference with the activations rounded as the file's kernels round them.

A kernel that computes with integer weights first rounds its input to int8, each token row with a
scale of its own. That is simulated before each linear layer whose weight the file keeps so. Run in
float64, it agrees with the kernels to float32 rounding (measured: docs/quantization.md), except
where a value lies so near the middle between two integers that float32 noise decides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from edgeverify.legs.quantization.weights import FileWeights, Held
from edgeverify.litert.flatbuffer.quantization import BLOCK

Rounding = Callable[[torch.Tensor], torch.Tensor]
LOWEST, HIGHEST = -128, 127


def asymmetric(x: torch.Tensor) -> torch.Tensor:
    """Rounds each row (…, C) to int8 between its own smallest and largest value, 0 included.

    As XNNPACK does before its ``qd8`` kernels, and LiteRT's own before blockwise ones and where
    the operator asks for it: the zero point is rounded to an integer, from whichever end it is
    then nearer to.
    """
    low = x.amin(-1, keepdim=True).clamp(max=0)
    high = x.amax(-1, keepdim=True).clamp(min=0)
    span = high - low
    per_unit = torch.where(span > 0, (HIGHEST - LOWEST) / span, torch.ones_like(span))
    from_low, from_high = LOWEST - low * per_unit, HIGHEST - high * per_unit
    nearer_low = (LOWEST + low * per_unit) + (HIGHEST + high * per_unit) > 0
    zero = torch.where(nearer_low, from_low, from_high).clamp(LOWEST, HIGHEST).round()
    stored = ((x * per_unit).round() + zero).clamp(LOWEST, HIGHEST)
    return (stored - zero) / per_unit


def symmetric(x: torch.Tensor) -> torch.Tensor:
    """Rounds each row (…, C) to int8 between minus and plus its largest magnitude.

    As LiteRT's own kernels do where ``asymmetric_quantize_inputs`` is off.
    """
    largest = x.abs().amax(-1, keepdim=True)
    per_unit = torch.where(largest > 0, HIGHEST / largest, torch.ones_like(largest))
    return (x * per_unit).round().clamp(-HIGHEST, HIGHEST) / per_unit


def roundings(weights: FileWeights, kernel: str) -> list[tuple[str, Rounding]]:
    """HF module → how a kernel rounds its input, of the layers whose input it rounds."""
    return [
        (module, rounding(kernel, weight))
        for name, weight in weights.held.items()
        if weight.in_integers
        for module in weights.modules(name)
    ]


def rounding(kernel: str, weight: Held) -> Rounding:
    """How a kernel rounds what it multiplies a weight with.

    Args:
        kernel: ``xnnpack``, ``builtin`` or ``reference``.
        weight: kept as integers.
    """
    in_blocks = weight.quantized is not None and weight.quantized.granularity == BLOCK
    if kernel == "xnnpack" or in_blocks or weight.asymmetric:
        return asymmetric
    return symmetric


@contextmanager
def rounded_inputs(model: nn.Module, roundings: Iterable[tuple[str, Rounding]]) -> Iterator[None]:
    """Rounds the input of linear layers for as long as this lasts.

    What hooks see of such a layer is still what it was given.

    Args:
        model: the model.
        roundings: name of a module, and how its input is rounded.

    Raises:
        TypeError: a named module is no linear layer.
    """
    changed: list[Any] = []
    try:
        for name, rounds in roundings:
            module = model.get_submodule(name)
            if not isinstance(module, nn.Linear):
                raise TypeError(f"{name} is a {type(module).__name__}, not a linear layer")
            module.forward = _with(rounds, module.forward)  # type: ignore[assignment,method-assign]
            changed.append(module)
        yield
    finally:
        for module in changed:
            del module.__dict__["forward"]


def _with(rounds: Rounding, forward: Rounding) -> Rounding:
    return lambda x: forward(rounds(x))
