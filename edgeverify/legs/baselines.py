"""The oracle and noise floors that each leg is compared with, cached or computed by running."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import torch

from edgeverify.backends.streaming import forgetting
from edgeverify.core.judge import Baseline
from edgeverify.core.noise import Floor, floor_of, widest
from edgeverify.core.store import entries
from edgeverify.core.trace import Trace
from edgeverify.legs import redraw
from edgeverify.legs.authoring import run_reauthored
from edgeverify.legs.run import CACHE_VERSION, Run

REFERENCE_SOURCES = (
    "backends/reference.py",
    "backends/precision.py",
    "backends/widened_tables.py",
    "backends/float32.py",
    "backends/float64.py",
    "hf/config.py",
    "core/noise.py",
    "hf/openelm*.py",
    "core/taps.py",
)


def _reference() -> Any:
    """The reference's backend, imported only where it runs: it imports transformers' models."""
    from edgeverify.backends import reference

    return reference


def reference_baselines(
    run: Run, *, with_file: bool, summed: Baseline | None = None
) -> tuple[Run, dict[str, Baseline]]:
    """Returns what each leg is compared with; cached.

    The re-authored model runs on PyTorch, as the reference does. The file's kernels sum one term
    after another, so the floor of the file's leg also covers that order (see
    ``edgeverify.backends.float32``).

    Args:
        run: the checkpoint and the case.
        with_file: whether the leg ``conversion`` is requested.
        summed: the same baseline of a model of the same geometry. Its floors then replace runs
            whose linear layers sum in order, which are slow.

    Returns:
        The run, whose case now has the reference's decode tokens, and the baseline of ``authoring``
        and, with a file, of ``conversion``.
    """
    key = entries.digest(
        "reference",
        CACHE_VERSION,
        entries.versions(),
        entries.source_digest(*REFERENCE_SOURCES),
        run.checkpoint.identity,
        [asdict(step) for step in run.case.steps],
        run.case.greedy,
    )
    built: list[Any] = []

    def model() -> Any:
        if not built:
            built.append(_reference().build(run.hf_config, run.state()))
        return built[0]

    def cached(kind: str, make: Callable[[], Trace]) -> Trace:
        write = lambda path: make().save(path)  # noqa: E731
        path = entries.cached(kind, key, ".safetensors", write, root=run.cache)
        return Trace.load(path, mapped=run.streamed)

    def stepwise(inject: Trace | None) -> Trace:
        steps = len(run.case.steps)
        with forgetting(model()), run.timed("reference, float32", steps) as tick:
            trace, used = _reference().run(model(), run.case, inject=inject, tick=tick)
        trace.provenance["decode_tokens"] = [s.tokens[0] for s in used.steps if s.is_decode]
        return trace

    def floor(inject: Trace | None, *, sequential: bool) -> Trace:
        """The noise floor of the other float32 run."""
        name = "reference, float32 summed in order" if sequential else "reference, float32"
        with forgetting(model()), run.timed(name):
            other = _reference().run_otherwise(
                model(), run.case, inject=inject, sequential=sequential, linear=summed is None
            )
        return Trace(dict(floor_of(oracle.arrays, other.arrays)))

    def oracle_run() -> Trace:
        with forgetting(model()), run.timed("oracle, float64"):
            return _reference().run_oracle(model(), run.case)

    def isolated_floor() -> Trace:
        first = floor_of(oracle.arrays, stepwise(oracle).arrays)
        return Trace(dict(widest(first, floor(oracle, sequential=False).arrays)))

    own = cached("reference", lambda: stepwise(None))
    run = replace(run, case=run.case.with_decode_tokens(own.provenance["decode_tokens"]))
    oracle = cached("oracle", oracle_run)
    other = cached("floor", lambda: floor(None, sequential=False))
    whole = widest(floor_of(oracle.arrays, own.arrays), other.arrays)
    isolated = cached("isolated-floor", isolated_floor).arrays
    more = redraw.Draws(run, key, oracle)
    baselines = {"authoring": more.offered_to(Baseline(oracle, whole, isolated, own))}
    if with_file:
        kind = "summed-floor" if summed is None else "partly-summed-floor"
        floors: list[Floor] = [whole, cached(kind, lambda: floor(None, sequential=True)).arrays]
        alone: list[Floor] = [
            isolated,
            cached(
                kind.replace("floor", "isolated-floor"), lambda: floor(oracle, sequential=True)
            ).arrays,
        ]
        if summed is not None:
            floors.append(summed.floor)
            alone.append(summed.isolated_floor)
        file = Baseline(oracle, widest(*floors), widest(*alone), own)
        baselines["conversion"] = more.offered_to(file)
    return run, baselines


def own_baseline(run: Run, own: Trace, reference_: Baseline) -> Baseline:
    """Returns a baseline whose oracle is the re-authored model itself in float64, for its own file.

    The floor is the larger of its own floor and the reference's: the noise of a correct float32 run
    does not depend on which of the two models runs.
    """
    oracle, _ = run_reauthored(run, None, torch.float64)
    _, isolated = run_reauthored(run, oracle)
    floor, alone = floor_of(oracle.arrays, own.arrays), floor_of(oracle.arrays, isolated.arrays)

    def beside(reference_: Baseline) -> Baseline:
        redrawn = reference_.redraw
        return Baseline(
            oracle,
            widest(floor, reference_.floor),
            widest(alone, reference_.isolated_floor),
            own,
            None if redrawn is None else lambda: beside(redrawn()),
        )

    return beside(reference_)
