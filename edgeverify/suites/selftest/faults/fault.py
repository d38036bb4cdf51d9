"""What a fault is: one named change, and what a check must say of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from edgeverify.core import taps

if TYPE_CHECKING:
    from edgeverify_models.port import Port

# Instead of a tap: the check refuses to run, with a message that holds ``Fault.told``.
REFUSED = "refused"
AREAS = (
    "embedding",
    "norm",
    "rope",
    "attention",
    "mask",
    "cache",
    "feed-forward",
    "head",
    "loader",
    "config",
    "converter",
    "decoding",
)
NOTHING: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True)
class Fault:
    """One change to a port or to a converted file.

    Attributes:
        name: unique; says what is wrong.
        area: one of ``AREAS``.
        description: one sentence for a reader who does not know the fault.
        cause: the true cause in words that a diagnosis can be held against.
        ports: the registered names of the ports that it applies to.
        where: the tap at which each faulty part must be named on its own, without the step; ``*``
            stands for every block; or ``(REFUSED,)``. Of a harmless change: the taps that
            the check must tell of; empty where there is nothing to tell.
        port: changes the port; the leg to blame is then ``authoring``.
        file: writes a changed copy of a converted file; the leg is then ``conversion``.
        step: the step of the first divergence, where it matters which.
        source: where it happened in public, or "".
        told: what a refusal's message must hold.
        hf: changes of the HF config on *both* sides, for faults that the port's own config hides.
        selectors: what the case needs besides the defaults.
        harmless: why this is no fault: the reason why the model is the same. "" for a fault.
        unseen: why no activation can show it, so that it is left to the audits. "" if one can.
    """

    name: str
    area: str
    description: str
    cause: str
    ports: tuple[str, ...]
    where: tuple[str, ...]
    port: Callable[[Port], Port] | None = None
    file: Callable[[Path, Path], None] | None = None
    step: str = ""
    source: str = ""
    told: str = ""
    hf: Mapping[str, Any] = field(default_factory=lambda: NOTHING)
    selectors: Mapping[str, Any] = field(default_factory=lambda: NOTHING)
    harmless: str = ""
    unseen: str = ""

    @property
    def leg(self) -> str:
        """Whom the check must blame."""
        return "conversion" if self.port is None else "authoring"

    def expected(self, num_blocks: int) -> tuple[str, ...]:
        """``where`` with every ``*`` replaced by each block, in forward order."""
        found: list[str] = []
        for pattern in self.where:
            if pattern.startswith("blocks.*."):
                leaf = pattern.removeprefix("blocks.*.")
                found += [taps.block(index, leaf) for index in range(num_blocks)]
            elif pattern.startswith("kv.*."):
                found += [taps.kv(index, pattern[-1]) for index in range(num_blocks)]
            else:
                found.append(pattern)
        order = {tap: place for place, tap in enumerate(taps.standard_taps(num_blocks))}
        return tuple(sorted(found, key=lambda tap: order.get(tap, -1)))
