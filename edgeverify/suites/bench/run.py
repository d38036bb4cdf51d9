"""Times files with each kernel, each in its own process."""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgeverify.core.errors import ArtifactError, RecipeError
from edgeverify.core.progress import Progress
from edgeverify.core.results import PASS, UNCHECKED, worst_outcome
from edgeverify.core.store import entries
from edgeverify.legs.selectors import Selectors
from edgeverify.litert.quantize import quantized
from edgeverify.litert.recipes import load_recipe
from edgeverify.suites.bench.worker import Job, Sample

SCHEMA = 1
# The fewest repeats from which a median separates a slow call from the usual one.
REPEATS = 5
WORKER = ("-m", "edgeverify.suites.bench.worker")


@dataclass(frozen=True)
class Spread:
    """The median of some repeats, with the smallest and the largest."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread | None:
        """Returns None if nothing was measured."""
        return cls(statistics.median(values), min(values), max(values)) if values else None


@dataclass(frozen=True)
class Row:
    """The result of one file with one kernel.

    Attributes:
        recipe: its name, or that of the file.
        outcome: ``pass`` if it was measured; ``unchecked`` if the recipe cannot be applied.
        prefill, decode: tokens per second.
        first_token, load: seconds.
        sample: the worker's measurements.
        reason: why it was not measured.
    """

    recipe: str
    kernel: str
    outcome: str
    size_bytes: int | None = None
    prefill: Spread | None = None
    decode: Spread | None = None
    first_token: Spread | None = None
    load: Spread | None = None
    sample: Sample | None = None
    reason: str = ""


@dataclass(frozen=True)
class Bench:
    """All rows, and the conditions they were measured under."""

    subject: str
    threads: int
    repeats: int
    rows: tuple[Row, ...]
    environment: Mapping[str, Any]

    @property
    def outcome(self) -> str:
        return worst_outcome([row.outcome for row in self.rows])

    def to_dict(self) -> dict[str, Any]:
        """Returns everything as JSON values."""
        return {"schema": SCHEMA, "outcome": self.outcome, **asdict(self)}


def bench_file(
    path: Path,
    kernels: Sequence[str],
    *,
    threads: int | None = None,
    repeats: int = REPEATS,
    progress: Progress | None = None,
) -> Bench:
    """Times a file with any prefill lengths.

    Args:
        path: a .tflite.
        kernels: ``xnnpack``, ``builtin``, ``reference``.
        threads: of the interpreter; None means all of the machine's.
        repeats: how often each figure is measured.
        progress: notified of each kernel.

    Raises:
        ArtifactError: the file cannot be read or run, or its runtime ended the process.
    """
    return _bench(path.name, [(path.name, path, "")], kernels, threads, repeats, progress)


def bench_model(
    port: Any,
    chosen: Selectors,
    kernels: Sequence[str],
    *,
    threads: int | None = None,
    repeats: int = REPEATS,
    verbose: bool = False,
    progress: Progress | None = None,
) -> Bench:
    """Converts a model once, quantizes the file by each recipe, and times every file.

    Args:
        port: a port, or its name.
        chosen: which weights and recipes; prefill lengths and steps are not used.
        kernels, threads, repeats: as for ``bench_file``.
        verbose, progress: as for ``edgeverify.suites.check``.

    Raises:
        EdgeVerifyError: bad usage or bad input. A recipe that cannot be applied is a row.
    """
    from edgeverify.legs.conversion import converted
    from edgeverify.legs.run import fitting_threads
    from edgeverify.suites.single_prefill import windowed_run

    recipes = [load_recipe(name) for name in chosen.recipes]
    run, _ = windowed_run(port, chosen, decode=True, verbose=verbose, progress=progress)
    with fitting_threads(run):
        float_file = converted(run)
    run.release()
    files: list[tuple[str, Path | None, str]] = []
    for recipe in recipes:
        try:
            with run.timed(f"quantize {recipe.name}"):
                files.append((recipe.name, quantized(float_file, recipe, cache=run.cache), ""))
        except RecipeError as error:
            files.append((recipe.name, None, error.what))
    subject = f"{run.case.model} {run.case.size} · {run.checkpoint.description}"
    return _bench(subject, files, kernels, threads, repeats, progress)


def _bench(
    subject: str,
    files: Sequence[tuple[str, Path | None, str]],
    kernels: Sequence[str],
    threads: int | None,
    repeats: int,
    progress: Progress | None,
) -> Bench:
    threads = threads or os.cpu_count() or 1
    rows = []
    for name, path, reason in files:
        if path is None:
            rows += [Row(name, kernel, UNCHECKED, reason=reason) for kernel in kernels]
            continue
        for kernel in kernels:
            with (progress or Progress()).stage(f"time {name}, {kernel}"):
                sample = measured(Job(str(path), kernel, threads, repeats))
            rows.append(_row(name, kernel, path, sample))
    environment = entries.environment(cores=os.cpu_count())
    return Bench(subject, threads, repeats, tuple(rows), environment)


def _row(name: str, kernel: str, path: Path, sample: Sample) -> Row:
    return Row(
        name,
        kernel,
        PASS,
        path.stat().st_size,
        prefill=Spread.of([sample.prefill_tokens / seconds for seconds in sample.prefill]),
        decode=Spread.of([sample.decode_steps / seconds for seconds in sample.decode]),
        first_token=Spread.of(sample.first_token),
        load=Spread.of(sample.load),
        sample=sample,
    )


def measured(job: Job) -> Sample:
    """Runs one job in its own process.

    Raises:
        ArtifactError: the worker raised it, or the process ended without an answer.
    """
    command = [sys.executable, *WORKER, json.dumps(asdict(job))]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode != 0:
        raise ArtifactError(
            f"the process that ran it {_end(done.returncode, done.stderr)}",
            where=job.file,
            expected=f"a file that LiteRT runs with --kernel {job.kernel}",
            fix="try another --kernel; if that passes, report it to LiteRT",
        )
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    if "error" in told:
        raise ArtifactError(told.pop("error"), **told)
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in told.items()}
    return Sample(**values)


def _end(status: int, stderr: str) -> str:
    """Says how a process ended: a signal's name, or the exit status and the last line."""
    if status < 0:
        return f"was ended by {signal.Signals(-status).name}"
    lines = stderr.strip().splitlines()
    return f"ended with status {status} ({lines[-1] if lines else 'it said nothing'})"
