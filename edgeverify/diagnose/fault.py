"""A possible fault as data: a sublayer's right description with one thing changed."""

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
        held: the fault is in tensors that the port is seen to hold, so that it is there for
            certain, and what else would explain the same values need not be named.
    """

    kind: str
    text: str
    spec: S
    held: bool = False


class Sublayer(Protocol[S]):
    """The stretch from one tap to the next, as an independent model of it."""

    def rights(self) -> Iterator[S]:
        """Descriptions of the right sublayer; the first that gives the oracle's values counts."""

    def compute(self, spec: S, inputs: Inputs) -> torch.Tensor:
        """The tap after the stretch, (T, ...)."""

    def changes(self, right: S, port: torch.Tensor, rows: torch.Tensor) -> Iterator[Change[S]]:
        """What may be wrong: ``port`` (R, ...) is what it gave, at the given rows."""

    def fitted(self, right: S, port: torch.Tensor, rows: torch.Tensor) -> Iterator[Change[S]]:
        """Likewise, with numbers that are fitted to what the port gave."""


def changed(spec: S, **fields: Any) -> S:
    """``dataclasses.replace`` with fields whose names are known only as the program runs."""
    return replace(spec, **fields)  # type: ignore[type-var]


def name_of(dtype: torch.dtype) -> str:
    """``bfloat16``."""
    return str(dtype).removeprefix("torch.")


def number(value: float) -> str:
    """At most six digits: 500000, 1e-06, 0.0625."""
    return (
        f"{value:.6g}" if value < 1e6 else f"{value:.0f}" if value == int(value) else f"{value:g}"
    )


def apart(value: float, right: float) -> tuple[str, str]:
    """Both numbers with as many digits as it takes to tell them apart, at least six."""
    for digits in range(6, 17):
        told = f"{value:.{digits}g}", f"{right:.{digits}g}"
        if told[0] != told[1] or value == right:
            break
    return told if digits > 6 else (number(value), number(right))
