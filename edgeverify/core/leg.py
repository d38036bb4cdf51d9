"""A leg: one step of a model's way to the device, to which a difference is attributed."""

from __future__ import annotations

from dataclasses import dataclass

AUTHORING, CONVERSION = "authoring", "conversion"
QUANTIZATION, RUNTIME = "quantization", "runtime"


@dataclass(frozen=True)
class Leg:
    """One leg of a check.

    ``str`` returns the name that appears in reports, JSON and test ids: ``authoring``,
    ``conversion``, ``quantization:dynamic_int8``, ``runtime:tf_lite``,
    ``runtime:tf_lite:dynamic_int8``.

    Attributes:
        kind: ``authoring``, ``conversion``, ``quantization`` or ``runtime``.
        recipe: the recipe of a quantized file; "" for the float file, and where a file does not
            state it.
        runtime: the runtime that runs the file in a ``runtime`` leg, else "".
    """

    kind: str
    recipe: str = ""
    runtime: str = ""

    def __str__(self) -> str:
        return ":".join(part for part in (self.kind, self.runtime, self.recipe) if part)

    @classmethod
    def of(cls, name: str) -> Leg:
        """Parses a leg's name as JSON reports have it. A runtime's name has no colon."""
        kind, _, rest = name.partition(":")
        if kind != RUNTIME:
            return cls(kind, recipe=rest)
        runtime, _, recipe = rest.partition(":")
        return cls(kind, recipe, runtime)

    def in_runtime(self, runtime: str) -> Leg:
        """Returns the leg for the same file in another runtime."""
        return Leg(RUNTIME, self.recipe, runtime)
