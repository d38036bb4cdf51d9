"""Which invariant is tested on which implementation; imports nothing heavy."""

from __future__ import annotations

from edgeverify.legs.selectors import Selectors
from edgeverify.suites.invariants import INVARIANTS


def cells(chosen: Selectors) -> list[tuple[str, str]]:
    """The pairs of an invariant and an implementation that it applies to."""
    return [
        (name, implementation)
        for implementation in chosen.implementations
        for name, invariant in INVARIANTS.items()
        if invariant.is_for(implementation)
    ]
