"""Estimates numbers and orders from the port's own output."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch

STEPS = 12
SMALLEST_STEP = 1e-9


def fit(
    compute: Callable[[float], torch.Tensor], target: torch.Tensor, starts: Iterable[float]
) -> float | None:
    """Finds the positive number with which ``compute`` comes nearest to ``target``.

    It uses Gauss-Newton on the logarithm, from the best of ``starts``. Each row is weighted by its
    own size.

    Args:
        compute: number → (R, ...).
        target: (R, ...).
        starts: starting points; one of them must be near enough.

    Returns:
        The number, or None if no start gives finite values.
    """
    goal = target.flatten(1)
    weight = 1 / goal.norm(dim=1, keepdim=True).clamp_min(1e-30)

    def residual(value: float) -> torch.Tensor:
        return (compute(value).flatten(1) - goal) * weight

    sizes = {start: float(residual(start).norm()) for start in starts}
    finite = {start: size for start, size in sizes.items() if size == size and size < float("inf")}
    if not finite:
        return None
    value = min(finite, key=lambda start: finite[start])
    size = finite[value]
    for _ in range(STEPS):
        here = residual(value)
        slope = (residual(value * (1 + 1e-5)) - here) / 1e-5
        steepness = float((slope * slope).sum())
        if steepness == 0:
            break
        step = max(-0.5, min(0.5, -float((slope * here).sum()) / steepness))
        while abs(step) > SMALLEST_STEP and float(residual(value * (1 + step)).norm()) > size:
            step /= 2
        if abs(step) <= SMALLEST_STEP:
            break
        value *= 1 + step
        size = float(residual(value).norm())
    return value


def factor(port: torch.Tensor, right: torch.Tensor) -> float:
    """Returns the r of ``port ≈ r * right``, by least squares."""
    return float((port * right).sum() / (right * right).sum().clamp_min(1e-300))


def sources(port: torch.Tensor, candidates: torch.Tensor, tolerance: float) -> list[int] | None:
    """Finds which candidate channel each of the port's channels is.

    Args:
        port: (R, C).
        candidates: (R, D).
        tolerance: the largest relative difference of a channel from its source.

    Returns:
        C numbers below D, or None if some channel is none of the candidates.
    """
    norms = candidates.norm(dim=0).clamp_min(1e-30)
    products = (port.T @ candidates) / norms / port.norm(dim=0).clamp_min(1e-30)[:, None]
    best = products.argmax(1)
    difference = (port - candidates[:, best]).norm(dim=0)
    if bool((difference > tolerance * port.norm(dim=0).clamp_min(1e-30)).any()):
        return None
    return [int(index) for index in best]
