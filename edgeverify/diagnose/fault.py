"""A possible fault as data: a sublayer's right description with one thing changed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import torch

from edgeverify.diagnose.scene import Inputs

S = TypeVar("S")


@dataclass(frozen=True)
class Change(Generic[S]):
    """One difference between the port and the original.

    Attributes:
        kind: stable and machine-readable, e.g. ``rope.base``.
        text: for a person, as ``what the port does → the repair``.
        spec: the sublayer's description with the fault in it.
    """

    kind: str
    text: str
    spec: S


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


def number(value: float) -> str:
    """At most six digits: 500000, 1e-06, 0.0625."""
    return (
        f"{value:.6g}" if value < 1e6 else f"{value:.0f}" if value == int(value) else f"{value:g}"
    )
