"""More float32 runs of the reference, made only for a failure that they might explain.

One float32 run is one draw of the rounding errors. Where an outlier dominates a row, its error is
that of a few roundings, and two draws may both be far below a typical one. Each further draw sums
in another order, rounds RoPE's angles otherwise, and is as right as the others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import fdtri  # type: ignore[import-untyped]

from edgeverify.backends.streaming import forgetting
from edgeverify.core.compare import thresholds
from edgeverify.core.judge import Baseline
from edgeverify.core.leg import AUTHORING
from edgeverify.core.noise import Floor, floor_of, rms, widest
from edgeverify.core.store import entries
from edgeverify.core.trace import Trace
from edgeverify.legs.run import Run

# Of 672 legs of right models with an outlier, 98 fail without further draws, 2 with twelve, none
# with 24 (docs/measurements.md).
DRAWS = 24
# A check judges some thousand taps, but few of them are independent of each other.
CHANCE = 1e-6
# With so many degrees of freedom, the ratio varies by less than a thousandth.
MANY = 1e6


def unchanged(model: Any) -> AbstractContextManager[None]:
    """The reference as it is."""
    return nullcontext()


@dataclass(frozen=True)
class Draws:
    """The floors of ``DRAWS`` more runs, cached like those of the first.

    Attributes:
        run: its checkpoint is the reference's.
        key: the cache key of the reference's other runs.
        oracle: what the runs are compared with.
        changing: changes the reference while it runs, e.g. rounds its activations.
    """

    run: Run
    key: str
    oracle: Trace
    changing: Callable[[Any], AbstractContextManager[None]] = field(default=unchanged)

    def offered_to(self, baseline: Baseline) -> Baseline:
        """Returns a baseline that takes these floors too once its ``redraw`` is called."""

        def redraw() -> Baseline:
            floor, alone = self.floors()
            return replace(
                baseline,
                floor=larger(baseline.floor, floor),
                isolated_floor=larger(baseline.isolated_floor, alone),
                redraw=None,
            )

        return replace(baseline, redraw=redraw)

    def floors(self) -> tuple[Floor, Floor]:
        """Returns the floor of the whole runs, and of those that are fed block by block."""
        built: list[Any] = []

        def model() -> Any:
            if not built:
                built.append(_reference().build(self.run.hf_config, self.run.state()))
            return built[0]

        whole = self._cached("redrawn-floor", model, None)
        return whole, self._cached("redrawn-isolated-floor", model, self.oracle)

    def _cached(self, kind: str, model: Callable[[], Any], inject: Trace | None) -> Floor:
        def write(path: Path) -> None:
            with forgetting(model()), self.run.timed("reference, float32 redrawn", DRAWS) as tick:
                draws = []
                for seed in range(1, DRAWS + 1):
                    draws.append(self._draw(model(), seed, inject))
                    tick()
            allowed = thresholds(AUTHORING).rms
            Trace(dict(floor_of_draws(draws, allowed))).save(path)

        key = entries.digest(self.key, DRAWS, CHANCE)
        path = entries.cached(kind, key, ".safetensors", write, root=self.run.cache)
        return Trace.load(path, mapped=self.run.streamed).arrays

    def _draw(self, model: Any, seed: int, inject: Trace | None) -> Floor:
        with self.changing(model):
            run = _reference().run_redrawn(model, self.run.case, seed, inject=inject)
        return floor_of(self.oracle.arrays, run.arrays)


def larger(first: Floor, drawn: Floor) -> Floor:
    """Combines the floor of the first runs with that of further draws, tap by tap.

    Each row has the larger of both floors, in proportion: their rms is the larger of the two rms.
    The larger in each row, as it is, would be a worse case of every row at once.
    """
    table = dict(first)
    for key in first.keys() & drawn.keys():
        rows = np.maximum(first[key], drawn[key])
        target = max(rms(first[key]), rms(drawn[key]))
        table[key] = rows * (target / rms(rows)) if target else rows
    return table


def floor_of_draws(draws: Sequence[Floor], allowed: float) -> Floor:
    """Returns a floor that a further draw exceeds ``allowed`` times with a chance of ``CHANCE``.

    The mean square of a tap's relative errors is taken as a scaled chi-squared variable. How much
    it varies from draw to draw tells its degrees of freedom ν, which is how many independent
    roundings decide it: hundreds in a usual tap, one where an outlier dominates all rows. The
    square of a further draw's ratio to the rms of K draws then has the distribution F(ν, Kν).

    Args:
        draws: the floors of single float32 runs, at least two.
        allowed: the allowed ratio of the rms over rows.

    Returns:
        The largest floor of each row, scaled so that their rms is that estimate.
    """
    largest = widest(*draws)
    table = {}
    for key, rows in largest.items():
        squares = np.array([rms(draw[key]) ** 2 for draw in draws])
        mean, spread = squares.mean(), squares.var(ddof=1)
        freedom = max(1.0, 2 * mean**2 / spread) if spread > 0 else math.inf
        quantile = fdtri(freedom, len(draws) * freedom, 1 - CHANCE) if freedom < MANY else 1.0
        target = math.sqrt(mean) * max(1.0, math.sqrt(quantile) / allowed)
        table[key] = rows * (target / rms(rows)) if target else rows
    return table


def _reference() -> Any:
    """The reference's backend, imported only where it runs: it imports transformers' models."""
    from edgeverify.backends import reference

    return reference
