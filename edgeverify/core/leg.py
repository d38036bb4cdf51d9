"""A leg: one step of a model's way to the device, and who is to blame for what differs there."""

from __future__ import annotations

from dataclasses import dataclass

AUTHORING, CONVERSION = "authoring", "conversion"
QUANTIZATION, RUNTIME = "quantization", "runtime"


@dataclass(frozen=True)
class Leg:
    """One leg of a check.

    ``str`` gives the name that reports, JSON and test ids have: ``authoring``, ``conversion``,
    ``quantization:dynamic_int8``, ``runtime:tf_lite``, ``runtime:tf_lite:dynamic_int8``.

    Attributes:
        kind: ``authoring``, ``conversion``, ``quantization`` or ``runtime``.
        recipe: of a quantized file; "" for the float file, and where a file does not say.
        runtime: what runs the file in a leg ``runtime``, else "".
    """

    kind: str
    recipe: str = ""
    runtime: str = ""

    def __str__(self) -> str:
        return ":".join(part for part in (self.kind, self.runtime, self.recipe) if part)

    @classmethod
    def of(cls, name: str) -> Leg:
        """The leg of a name, as JSON reports have it. A runtime's name holds no colon."""
        kind, _, rest = name.partition(":")
        if kind != RUNTIME:
            return cls(kind, recipe=rest)
        runtime, _, recipe = rest.partition(":")
        return cls(kind, recipe, runtime)

    def in_runtime(self, runtime: str) -> Leg:
        """The leg of this leg's file in another runtime."""
        return Leg(RUNTIME, self.recipe, runtime)
