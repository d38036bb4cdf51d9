"""What a fault is: one named change, what a check must say of it, and how a fault is written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from edgeverify.core import taps
from edgeverify.suites.selftest.faults.ports import ALL

if TYPE_CHECKING:
    from edgeverify_models.port import Port

# Instead of a tap: the check refuses to run, with a message that contains ``Fault.refusal``.
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
        cause: the true cause in a few words.
        ports: the registered names of the ports that it applies to.
        where: the tap at which each faulty part must be named on its own, without the step; ``*``
            stands for every block; or ``(REFUSED,)``. Of a harmless change: the taps that
            the check must mention; empty where there is nothing to mention.
        port: changes the port; the leg to blame is then ``authoring``.
        file: writes a changed copy of a converted file; the leg is then ``conversion``.
        kinds: the kinds of cause, as the diagnosis names them, that are true of the fault. Several
            may be: a layer that is loaded twice has the weights and the norm weights of another.
            A diagnosis that names any other kind is wrong. Empty for a file: none is diagnosed.
        step: the step of the first divergence, where it matters which.
        source: where it happened in public, or "".
        refusal: what a refusal's message must contain.
        hf: changes of the HF config on *both* sides, for faults that the port's own config hides.
        selectors: what the case needs besides the defaults.
        harmless: why this is not a fault: the reason why the model is the same. "" for a fault.
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
    kinds: tuple[str, ...] = ()
    step: str = ""
    source: str = ""
    refusal: str = ""
    hf: Mapping[str, Any] = field(default_factory=lambda: NOTHING)
    selectors: Mapping[str, Any] = field(default_factory=lambda: NOTHING)
    harmless: str = ""
    unseen: str = ""

    @property
    def leg(self) -> str:
        """The leg that the check must blame."""
        return "conversion" if self.port is None else "authoring"

    def expected(self, num_blocks: int) -> tuple[str, ...]:
        """``where`` with every ``*`` replaced by each block, in forward order."""
        expected: list[str] = []
        for pattern in self.where:
            if pattern.startswith("blocks.*."):
                leaf = pattern.removeprefix("blocks.*.")
                expected += [taps.block(index, leaf) for index in range(num_blocks)]
            elif pattern.startswith("kv.*."):
                expected += [taps.kv(index, pattern[-1]) for index in range(num_blocks)]
            else:
                expected.append(pattern)
        order = {tap: place for place, tap in enumerate(taps.standard_taps(num_blocks))}
        return tuple(sorted(expected, key=lambda tap: order.get(tap, -1)))


class Faults(list[Fault]):
    """The faults of one area, in order; ``add`` writes each beside the function that makes it.

    Args:
        area: ``Fault.area`` of all, unless a fault has its own.
        changes: the field that the functions fill: "port" or "file".
        defaults: other fields that most faults share; ``ports`` is ``ALL`` unless it is given.
    """

    def __init__(self, area: str = "", changes: str = "port", **defaults: Any) -> None:
        super().__init__()
        self.changes = changes
        self.defaults = {"area": area, "ports": ALL, "where": "", **defaults}

    def add(
        self, cause: str = "", *, via: Callable[..., Any] | None = None, **fields: Any
    ) -> Callable[[Callable[..., Any]], Fault]:
        """Makes a fault of the function below: its name, and the first paragraph of its docstring.

        Args:
            cause: ``Fault.cause``; "" for a harmless change.
            via: applies the function: ``via(port, function)`` returns the changed port, or
                ``via(source, target, function)`` writes the changed file. None: the function
                itself is ``Fault.port`` or ``Fault.file``.
            fields: other fields. Words in one string will do for a tuple of them; a ``refusal``
                is ``where`` by itself.
        """
        facts = {**self.defaults, "cause": cause, **fields}
        if facts.get("refusal"):
            facts["where"] = REFUSED
        for name in ("ports", "where", "kinds"):
            if isinstance(facts.get(name), str):
                facts[name] = tuple(facts[name].split())

        def add(change: Callable[..., Any]) -> Fault:
            first, *_ = (change.__doc__ or "").split("\n\n")
            applied = change if via is None else lambda *subject: via(*subject, change)
            facts.update(name=change.__name__, description=" ".join(first.split()))
            self.append(Fault(**{**facts, self.changes: applied}))
            return self[-1]

        return add
