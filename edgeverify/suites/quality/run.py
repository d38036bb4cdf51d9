"""Runs a whole evaluation: text → reference → one float file → each recipe → figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgeverify.backends import reference
from edgeverify.core.errors import CheckpointError, RecipeError
from edgeverify.core.memory import peak_memory
from edgeverify.core.progress import Progress
from edgeverify.core.results import FAIL, PASS, UNCHECKED
from edgeverify.core.store import entries
from edgeverify.legs.baselines import REFERENCE_SOURCES
from edgeverify.legs.conversion import converted
from edgeverify.legs.run import Run, fitting_threads, is_large
from edgeverify.legs.selectors import Selectors
from edgeverify.litert.quantize import quantized
from edgeverify.litert.recipes import FLOAT32, Recipe, label, load_recipe
from edgeverify.suites.quality import statistics
from edgeverify.suites.quality.gate import Condition, Gates, judge
from edgeverify.suites.quality.logits import Scored, read_reference, score_file, write_reference
from edgeverify.suites.quality.model import Evaluation, Row, gateable
from edgeverify.suites.quality.prefetch import meanwhile, quantize
from edgeverify.suites.quality.statistics import Positions, Resamples
from edgeverify.suites.quality.text import Stream, Window, load_stream, windows
from edgeverify.suites.single_prefill import WINDOW, windowed_run

# Increase this when the contents of the reference's file change.
CACHE_VERSION = 1


@dataclass(frozen=True)
class Asked:
    """The options of an evaluation besides the selectors.

    Attributes:
        text: a file of the user's own; None means the shipped text.
        tokens: the largest number of tokens to take; None means all.
        window: tokens in a window.
        gates: conditions on the figures.
    """

    text: Path | None = None
    tokens: int | None = None
    window: int = WINDOW
    gates: Gates = field(default_factory=Gates)


def evaluate(
    port: Any,
    chosen: Selectors,
    asked: Asked,
    *,
    verbose: bool = False,
    progress: Progress | None = None,
) -> Evaluation:
    """Scores every recipe of a model on a text, teacher-forced.

    The float file is always run, and run first, because the others are paired with it.

    Args:
        port: a port, or its name.
        chosen: what to run; its prefill lengths and steps are not used.
        asked: the text, the windows and the gates.
        verbose: show what the converter prints.
        progress: notified of each stage.

    Raises:
        EdgeVerifyError: bad usage or bad input. A recipe that cannot be applied is a row.
    """
    recipes = [load_recipe(name) for name in dict.fromkeys((FLOAT32, *chosen.recipes))]
    run, tokenizer = windowed_run(
        port, chosen, asked.window, decode=False, verbose=verbose, progress=progress
    )
    stream = load_stream(
        tokenizer, run.hf_config, file=asked.text, limit=asked.tokens, seed=chosen.seed
    )
    cut = tuple(windows(stream, asked.window))
    with fitting_threads(run):
        # Only a port's name can be sent to another process, not a port.
        large = is_large(run) and isinstance(port, str)
        with meanwhile(reference_ahead, port, chosen, asked) if large else nullcontext():
            path = converted(run)
            logits = _reference(run, cut)
        run.release()
        subject = _subject(run, path, cut, logits)
        labels = {label(name) for name in chosen.recipes}
        with meanwhile(quantize, path, recipes, run.cache) if large else nullcontext():
            rows = _rows(subject, recipes, asked.gates, labels)
        return _evaluation(subject, chosen, asked, stream, rows)


def reference_ahead(port: str, chosen: Selectors, asked: Asked) -> None:
    """Puts the reference's logits into the cache; takes the arguments of ``evaluate``."""
    run, tokenizer = windowed_run(port, chosen, asked.window, decode=False)
    stream = load_stream(
        tokenizer, run.hf_config, file=asked.text, limit=asked.tokens, seed=chosen.seed
    )
    with fitting_threads(run):
        _reference(run, tuple(windows(stream, asked.window)))


@dataclass(frozen=True)
class _Subject:
    """The values that all recipes of a run share."""

    run: Run
    float_path: Path
    cut: tuple[Window, ...]
    logits: np.ndarray
    reference_nll: np.ndarray
    resamples: Resamples
    threads: int


def _reference(run: Run, cut: Sequence[Window]) -> np.ndarray:
    """Returns the reference's logits (N, V), from the cache or computed now."""
    key = entries.digest(
        "quality",
        CACHE_VERSION,
        entries.versions(),
        entries.source_digest(*REFERENCE_SOURCES, "suites/quality/logits.py"),
        run.checkpoint.identity,
        [window.tokens for window in cut],
    )

    def make(path: Path) -> None:
        model = reference.build(run.hf_config, run.state())
        with run.timed("reference", len(cut)) as tick:
            write_reference(model, cut, path, tick)

    found = entries.cached("logits", key, ".f32", make, root=run.cache)
    return read_reference(found, cut)


def _subject(run: Run, path: Path, cut: tuple[Window, ...], logits: np.ndarray) -> _Subject:
    own = statistics.nll(logits, np.concatenate([window.targets for window in cut]))
    if not np.isfinite(own).all():
        raise CheckpointError(
            "the reference's own logits are not finite",
            where=run.checkpoint.description,
            expected="weights that give finite logits in float32",
        )
    of_window = np.concatenate([np.full(len(window.targets), window.index) for window in cut])
    # As many threads as PyTorch uses here: one for a small model.
    threads = torch.get_num_threads()
    return _Subject(run, path, cut, logits, own, Resamples.of(of_window), threads)


def _rows(
    subject: _Subject, recipes: Sequence[Recipe], gates: Gates, gated: set[str]
) -> tuple[Row, ...]:
    rows: list[Row] = []
    float_file: Positions | None = None
    for recipe in recipes:
        try:
            path = _quantized(subject, recipe)
        except RecipeError as error:
            rows.append(Row(recipe.name, UNCHECKED, reason=error.what))
            continue
        scored = _scored(subject, recipe, path)
        float_file = float_file or scored.positions
        conditions = gates.of(recipe.name) if recipe.name in gated else ()
        rows.append(_row(recipe, path, scored, float_file, subject.resamples, conditions))
    return tuple(rows)


def _quantized(subject: _Subject, recipe: Recipe) -> Path:
    run = subject.run
    if recipe.name == FLOAT32:
        return subject.float_path
    with run.timed(f"quantize {recipe.name}"):
        return quantized(subject.float_path, recipe, cache=run.cache)


def _scored(subject: _Subject, recipe: Recipe, path: Path) -> Scored:
    run = subject.run
    with run.timed(f"score {recipe.name}", len(subject.cut)) as tick:
        return score_file(
            path,
            run.case,
            subject.cut,
            subject.logits,
            num_threads=subject.threads,
            tick=tick,
        )


def _row(
    recipe: Recipe,
    path: Path,
    scored: Scored,
    float_file: Positions,
    resamples: Resamples,
    conditions: Sequence[Condition],
) -> Row:
    """Returns the row of one file; a figure that is not a number fails without any gate."""
    size, speed = path.stat().st_size, scored.tokens_per_second
    if not scored.positions.finite:
        odd = int((~np.isfinite(scored.positions.kl + scored.positions.nll)).sum())
        reason = f"its logits are not finite at {odd} of {scored.positions.count} positions"
        return Row(recipe.name, FAIL, None, size, speed, reason=reason)
    if not float_file.finite:
        reason = "the float file, which it is held against, gives logits that are not finite"
        return Row(recipe.name, UNCHECKED, None, size, speed, reason=reason)
    found = statistics.figures(scored.positions, float_file, resamples)
    judged = judge(conditions, gateable(found, size, speed))
    outcome = PASS if all(one.holds for one in judged) else FAIL
    return Row(recipe.name, outcome, found, size, speed, judged)


def _evaluation(
    subject: _Subject, chosen: Selectors, asked: Asked, stream: Stream, rows: tuple[Row, ...]
) -> Evaluation:
    run, case = subject.run, subject.run.case
    perplexity, error = statistics.perplexity(subject.reference_nll, subject.resamples)
    return Evaluation(
        selectors=_plain({**chosen.arguments(), "text": asked.text, "tokens": asked.tokens}),
        model={
            "name": case.model,
            "size": case.size,
            "checkpoint": run.checkpoint.description,
            "kv_layout": case.kv_layout,
            "kernel": case.kernel,
            "threads": subject.threads,
            "kv_cache_len": case.kv_cache_len,
        },
        text=stream.description,
        positions=len(subject.reference_nll),
        reference=perplexity,
        reference_se=error,
        rows=rows,
        gates_source=asked.gates.source,
        environment=entries.environment(time=datetime.now(UTC).isoformat(timespec="seconds")),
        timings=dict(run.log.timings),
        peak_memory=peak_memory(),
    )


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Converts values to JSON values: a tuple becomes a list, a path becomes text."""
    return {name: str(v) if isinstance(v, Path) else v for name, v in values.items()}
