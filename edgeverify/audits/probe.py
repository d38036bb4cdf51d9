"""Identifies a small module or function by what it computes or by its plain attributes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional

ANOTHER = "another function"
# On this grid, formulas of one function differ by 3e-7 (transformers' gelu_new against torch's tanh
# form). The two nearest functions, GELU's erf and tanh forms, differ by 4.7e-4.
_GRID = torch.linspace(-4.0, 4.0, 65)
_SAME = 1e-5
_ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu (tanh form)": lambda x: functional.gelu(x, approximate="tanh"),
    "gelu (quick form)": lambda x: x * torch.sigmoid(1.702 * x),
    "relu": functional.relu,
    "none": lambda x: x,
}
_EPS_NAMES = ("eps", "variance_epsilon", "epsilon")


def activation(function: Callable[[torch.Tensor], torch.Tensor]) -> tuple[str, bool]:
    """Identifies an activation, and whether it is gated: ``act(first half) * second half``.

    Returns:
        The name, or ``ANOTHER``, and whether it halves its input.

    Raises:
        Exception: any exception that the function raises on a (130,) or (1, 65) tensor.
    """
    with torch.no_grad():
        halves = bool(function(_GRID.repeat(2)).numel() == _GRID.numel())
        given = torch.cat([_GRID, torch.ones_like(_GRID)]) if halves else _GRID
        seen = function(given)
        for name, known in _ACTIVATIONS.items():
            if torch.allclose(seen, known(_GRID), rtol=0.0, atol=_SAME):
                return name, halves
    return ANOTHER, halves


def norm_kind(norm: nn.Module) -> str:
    """Returns ``LayerNorm`` if a constant added to the input is subtracted again, else ``RMSNorm``.

    Raises:
        Exception: the norm has no weights, or any exception that it raises on a (1, width) tensor.
    """
    ramp = _ramp(norm)
    weights = {name: torch.ones_like(p, device="cpu") for name, p in norm.named_parameters()}
    weights |= {name: torch.zeros_like(w) for name, w in weights.items() if name.endswith("bias")}
    with torch.no_grad():
        moved = functional_call(norm, weights, (ramp + 100.0,))
        return "LayerNorm" if bool((moved < 0).any()) else "RMSNorm"


def norm_adds_one(norm: nn.Module) -> bool:
    """Whether the norm's factor is ``1 + weight``, so that a weight of 0 lets the input through."""
    zeros = {name: torch.zeros_like(p, device="cpu") for name, p in norm.named_parameters()}
    with torch.no_grad():
        return bool(functional_call(norm, zeros, (_ramp(norm),)).any())


def norm_eps(norm: nn.Module) -> float | None:
    """Returns the norm's epsilon from the attribute that stores it, or None."""
    for name in _EPS_NAMES:
        value = getattr(norm, name, None)
        if isinstance(value, (int, float)):
            return float(value)
    return None


def _ramp(norm: nn.Module) -> torch.Tensor:
    width = next((p.shape[0] for p in norm.parameters()), 0)
    if not width:
        raise ValueError("it has no weights to tell its width by")
    return torch.arange(1.0, 1.0 + width)[None]


def first(owner: Any, *names: str) -> Any:
    """Returns the first attribute of those names that exists and is not None, or None."""
    for name in names:
        value = getattr(owner, name, None)
        if value is not None:
            return value
    return None


def has_bias(*linears: Any) -> str:
    """Returns ``yes``, ``no`` or ``some``: whether the linear layers have biases."""
    found = {getattr(linear, "bias", None) is not None for linear in linears}
    if len(found) == 2:
        return "some"
    return "yes" if found == {True} else "no"
