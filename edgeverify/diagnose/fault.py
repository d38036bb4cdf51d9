"""Describes a possible fault as data: a sublayer's correct description with one change."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Generic, Protocol, TypeVar

import torch

from edgeverify.diagnose.scene import Inputs

S = TypeVar("S")
HALVES = (torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Change(Generic[S]):
    """One difference between the port and the original.

    Attributes:
        kind: stable and machine-readable, e.g. ``rope.base``.
        text: for a person, as ``what the port does → the repair``.
        spec: the sublayer's description with the fault in it.
        held: whether the fault is in tensors that the port contains. Then it is certain, and other
            explanations of the same values need not be named.
    """

    kind: str
    text: str
    spec: S
    held: bool = False


class Sublayer(Protocol[S]):
    """The computation from one tap to the next, as an independent model of it."""

    def rights(self) -> Iterator[S]:
        """Yields correct descriptions; the first that gives the oracle's values counts."""

    def compute(self, spec: S, inputs: Inputs) -> torch.Tensor:
        """Returns the tap after the sublayer, (T, ...)."""

    def changes(self, right: S, port: torch.Tensor, rows: torch.Tensor) -> Iterator[Change[S]]:
        """Yields possible faults; ``port`` (R, ...) is the port's output at the given rows."""

    def fitted(self, right: S, port: torch.Tensor, rows: torch.Tensor) -> Iterator[Change[S]]:
        """Yields possible faults with numbers that are fitted to the port's output."""


def changed(spec: S, **fields: Any) -> S:
    """Calls ``dataclasses.replace`` with fields whose names are known only at run time."""
    return replace(spec, **fields)  # type: ignore[type-var]


def name_of(dtype: torch.dtype) -> str:
    """Returns a dtype's name, e.g. ``bfloat16``."""
    return str(dtype).removeprefix("torch.")


def number(value: float) -> str:
    """Formats a number with at most six digits: 500000, 1e-06, 0.0625."""
    return (
        f"{value:.6g}" if value < 1e6 else f"{value:.0f}" if value == int(value) else f"{value:g}"
    )


def apart(value: float, right: float) -> tuple[str, str]:
    """Formats both numbers with as many digits as distinguish them, at least six."""
    for digits in range(6, 17):
        told = f"{value:.{digits}g}", f"{right:.{digits}g}"
        if told[0] != told[1] or value == right:
            break
    return told if digits > 6 else (number(value), number(right))
