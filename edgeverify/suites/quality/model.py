"""The results of an evaluation, as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from edgeverify.core.results import PASS, worst_outcome
from edgeverify.suites.quality.gate import SIZE, SPEED, Judged
from edgeverify.suites.quality.statistics import Estimate, Figures

SCHEMA = 1
MEGABYTE = 1e6


@dataclass(frozen=True)
class Row:
    """The result of one recipe.

    Attributes:
        outcome: ``fail`` if a gate does not hold or a logit is not finite; ``unchecked``, with the
            reason, if the recipe cannot be applied.
        figures: None if nothing was measured.
        size_bytes: size of the file.
        tokens_per_second: of the evaluation's own prefills, without the first.
        gates: each condition and whether it holds.
        reason: why it is not a pass, where no gate says so.
    """

    recipe: str
    outcome: str
    figures: Figures | None = None
    size_bytes: int | None = None
    tokens_per_second: float | None = None
    gates: tuple[Judged, ...] = ()
    reason: str = ""

    def to_dict(self) -> dict[str, Any]:
        return {
            "recipe": self.recipe,
            "outcome": self.outcome,
            "figures": None if self.figures is None else self.figures.to_dict(),
            "size_bytes": self.size_bytes,
            "tokens_per_second": self.tokens_per_second,
            "gates": [judged.to_dict() for judged in self.gates],
            "reason": self.reason,
        }


@dataclass(frozen=True)
class Evaluation:
    """The results of all recipes of one model on one text.

    Attributes:
        selectors: the requested values, by selector.
        model: name, size, checkpoint, KV layout, kernel, threads, window and rows of the cache.
        text: where the tokens come from.
        positions: how many next tokens are scored.
        reference: the reference's own perplexity on the text.
        reference_se: its standard error.
        rows: one for each recipe, ``float32`` first.
        gates_source: where the gates come from; empty if there are none.
        environment: versions and the machine.
        timings: seconds of each stage.
        peak_memory: the process's peak, in bytes.
    """

    selectors: Mapping[str, Any]
    model: Mapping[str, Any]
    text: str
    positions: int
    reference: Estimate
    reference_se: float
    rows: tuple[Row, ...]
    gates_source: str
    environment: Mapping[str, Any]
    timings: Mapping[str, float] = field(default_factory=dict)
    peak_memory: int | None = None

    @property
    def outcome(self) -> str:
        return worst_outcome([row.outcome for row in self.rows])

    @property
    def passed(self) -> bool:
        return self.outcome == PASS

    def to_dict(self) -> dict[str, Any]:
        """Returns the evaluation as JSON values."""
        return {
            "schema": SCHEMA,
            "outcome": self.outcome,
            "selectors": dict(self.selectors),
            "model": dict(self.model),
            "text": self.text,
            "positions": self.positions,
            "reference": {
                "perplexity": self.reference.to_dict(),
                "perplexity_se": self.reference_se,
            },
            "recipes": [row.to_dict() for row in self.rows],
            "gates": self.gates_source,
            "environment": dict(self.environment),
            "timings": dict(self.timings),
            "peak_memory": self.peak_memory,
        }


def gateable(figures: Figures, size_bytes: int, tokens_per_second: float) -> dict[str, Estimate]:
    """Returns all figures that a gate may name."""
    return {
        **figures.estimates(),
        SIZE: Estimate(size_bytes / MEGABYTE),
        SPEED: Estimate(tokens_per_second),
    }
