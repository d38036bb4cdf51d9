"""The control: the reference with the activations rounded as the file's kernels round them.

A kernel that computes with integer weights first rounds its input to int8, each token row with its
own scale. The control simulates this before each linear layer whose weight the file stores as
integers. In float64, it agrees with the kernels to float32 rounding (measured:
docs/quantization.md), except where a value is so near the middle between two integers that float32
noise decides.
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

    XNNPACK does this before its ``qd8`` kernels. LiteRT's own kernels do it before blockwise ones
    and where the operator requests it. The zero point is rounded to an integer, from the end that
    it is then nearer to.
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

    LiteRT's own kernels do this where ``asymmetric_quantize_inputs`` is off.
    """
    largest = x.abs().amax(-1, keepdim=True)
    per_unit = torch.where(largest > 0, HIGHEST / largest, torch.ones_like(largest))
    return (x * per_unit).round().clamp(-HIGHEST, HIGHEST) / per_unit


def roundings(weights: FileWeights, kernel: str) -> list[tuple[str, Rounding]]:
    """Pairs of HF module and input rounding, for the layers whose input the kernel rounds."""
    return [
        (module, rounding(kernel, weight))
        for name, weight in weights.held.items()
        if weight.in_integers
        for module in weights.modules(name)
    ]


def rounding(kernel: str, weight: Held) -> Rounding:
    """Returns how a kernel rounds the values that it multiplies a weight with.

    Args:
        kernel: ``xnnpack``, ``builtin`` or ``reference``.
        weight: stored as integers.
    """
    in_blocks = weight.quantized is not None and weight.quantized.granularity == BLOCK
    if kernel == "xnnpack" or in_blocks or weight.asymmetric:
        return asymmetric
    return symmetric


@contextmanager
def rounded_inputs(model: nn.Module, roundings: Iterable[tuple[str, Rounding]]) -> Iterator[None]:
    """Rounds the input of linear layers while the context is active.

    Hooks on such a layer still see the input before rounding.

    Args:
        model: the model.
        roundings: name of a module, and how its input is rounded.

    Raises:
        TypeError: a named module is not a linear layer.
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
