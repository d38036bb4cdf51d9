"""What an edge walk is compared with: the Hugging Face model from written KV caches, cached."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from edgeverify.backends.streaming import forgetting
from edgeverify.core.compare import thresholds
from edgeverify.core.edges import Edge, moved, rows_left
from edgeverify.core.judge import Baseline
from edgeverify.core.leg import AUTHORING, CONVERSION
from edgeverify.core.noise import Floor, floor_of, widest
from edgeverify.core.store import entries
from edgeverify.core.trace import Trace
from edgeverify.legs.baselines import REFERENCE_SOURCES
from edgeverify.legs.redraw import DRAWS, floor_of_draws, larger
from edgeverify.legs.run import CACHE_VERSION, Run

SOURCES = (
    *REFERENCE_SOURCES,
    "backends/reference_edges.py",
    "core/edges.py",
    "legs/edge_baselines.py",
    "legs/redraw.py",
)
Changing = Callable[[Any], AbstractContextManager[None]]


@dataclass(frozen=True)
class EdgeBaselines:
    """The oracle and the floors of edges; runs the reference for those that are not in the cache.

    Attributes:
        run: its case has the reference's decode tokens.
        edges: the steps.
        of_legs: leg → the baseline of its conversation.
    """

    run: Run
    edges: Sequence[Edge]
    of_legs: Mapping[str, Baseline]
    _built: list[Any] = field(default_factory=list)

    def of(self, leg: str) -> Baseline:
        """Returns the baseline of the edges, for the candidates of a leg.

        A right float32 run differs from the oracle by its roundings in the step itself, and by
        those in the rows of the KV cache that it starts from. So the floor is that of the
        reference's own run, and of runs that compute otherwise, from rows with other errors.
        """
        conversation = self.of_legs[leg]
        oracle = self._cached("edges", lambda: self._run(exactly, conversation.oracle))

        def more() -> Baseline:
            # The rows that a draw starts from err as those of the leg do.
            kind = f"edges-{leg}-redrawn"
            draws = self._cached(kind, lambda: self._redrawn(oracle, conversation))
            return replace(baseline, floor=larger(baseline.floor, draws.arrays), redraw=None)

        floor = self._cached(f"edges-{leg}", lambda: self._floor(oracle, leg)).arrays
        baseline = Baseline(oracle, floor, floor, oracle, more)
        return baseline

    def prepare(self) -> None:
        """Computes the baselines of all legs, then releases the reference."""
        for leg in self.of_legs:
            self.of(leg)
        self._built.clear()

    def _floor(self, oracle: Trace, leg: str) -> Trace:
        conversation = self.of_legs[leg]
        runs = [
            self._run(as_is, conversation.own),
            self._run(otherwise(sequential=False), conversation.oracle, conversation.floor, 1),
        ]
        if leg == CONVERSION:
            in_order = otherwise(sequential=True)
            runs.append(self._run(in_order, conversation.oracle, conversation.floor, 2))
        floors = [floor_of(oracle.arrays, run.arrays) for run in runs]
        return Trace(dict(widest(*floors)))

    def _redrawn(self, oracle: Trace, conversation: Baseline) -> Trace:
        draws: list[Floor] = []
        for seed in range(1, DRAWS + 1):
            made = self._run(redrawn(seed), conversation.oracle, conversation.floor, seed)
            draws.append(floor_of(oracle.arrays, made.arrays))
        return Trace(dict(floor_of_draws(draws, thresholds(AUTHORING).rms)))

    def _run(
        self, changing: Changing, left: Trace, floor: Floor | None = None, seed: int = 0
    ) -> Trace:
        """Runs the edges from the rows that a conversation has left, perhaps with other errors."""
        from edgeverify.backends import reference_edges

        rows = rows_left(left, self.run.case)
        if floor is not None:
            rows = moved(rows, floor, self.run.case, seed)
        model = self._model()
        with forgetting(model), self.run.timed("reference at the edges"), changing(model):
            return reference_edges.run(model, self.edges, rows)

    def _model(self) -> Any:
        from edgeverify.backends import reference

        if not self._built:
            self._built.append(reference.build(self.run.hf_config, self.run.state()))
        return self._built[0]

    def _cached(self, kind: str, make: Callable[[], Trace]) -> Trace:
        run = self.run
        key = entries.digest(
            "edges",
            CACHE_VERSION,
            entries.versions(),
            entries.source_digest(*SOURCES),
            run.checkpoint.identity,
            [asdict(step) for step in run.case.steps],
            [asdict(edge) for edge in self.edges],
        )

        def write(path: Path) -> None:
            make().save(path)

        path = entries.cached(kind, key, ".safetensors", write, root=run.cache)
        return Trace.load(path, mapped=run.streamed)


def as_is(_: Any) -> AbstractContextManager[None]:
    """The reference as it is."""
    return nullcontext()


def exactly(model: Any) -> AbstractContextManager[None]:
    """The reference in float64."""
    from edgeverify.backends import precision

    return precision.exact(model)


def otherwise(*, sequential: bool) -> Changing:
    """The reference as another right float32 implementation; see ``reference.run_otherwise``."""
    from edgeverify.backends import precision

    return lambda model: precision.otherwise(model, sequential=sequential)


def redrawn(seed: int) -> Changing:
    """The reference with one draw of its roundings; see ``reference.run_redrawn``."""
    from edgeverify.backends import precision

    return lambda model: precision.redrawn(model, seed)
