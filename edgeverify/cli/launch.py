"""What the command line and pytest have in common: a run without the libraries' chatter."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeverify.core.progress import Progress
from edgeverify.core.quiet import hush, without_chatter
from edgeverify.core.results import Report
from edgeverify.legs.ports import load_port
from edgeverify.legs.selectors import GOLDENS, Selectors

if TYPE_CHECKING:
    from edgeverify.suites.bench.run import Bench
    from edgeverify.suites.quality.gate import Gates
    from edgeverify.suites.quality.model import Evaluation
    from edgeverify.suites.selftest.matrix import Result


def check(
    model: str,
    chosen: Selectors,
    *,
    invariants: bool = False,
    golden: Path | None = None,
    verbose: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Loads the port and verifies it.

    Args:
        model: a registered name, ``package.module:ATTR`` or ``path/to/file.py:ATTR``.
        chosen: what to run.
        invariants: ask for the contracts of cache, mask, padding and batch, too.
        golden: a folder whose goldens are to be compared with, too.
        verbose: lets the libraries write to the terminal.
        progress: told of the stages.

    Raises:
        EdgeVerifyError: bad input.
    """

    def run() -> Report:
        from edgeverify.suites.check import verify

        # The libraries' half a million objects live as long as the process: a collection that
        # looks through them takes half a second.
        gc.freeze()
        return verify(
            model,
            **chosen.arguments(),
            invariants=invariants,
            golden=golden,
            verbose=verbose,
            progress=progress or Progress(),
        )

    return without_chatter(run, enabled=not verbose)


def golden(
    model: str,
    chosen: Selectors,
    directory: Path,
    *,
    update: bool = False,
    kinds: Sequence[str] = GOLDENS,
    verbose: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Compares a port with its goldens; like ``check`` otherwise.

    Args:
        model, chosen, verbose, progress: as for ``check``.
        directory: of the goldens.
        update: rewrite them from this run.
        kinds: which of them.
    """

    def run() -> Report:
        from edgeverify.suites.check import verify_goldens

        gc.freeze()
        return verify_goldens(
            model,
            chosen,
            directory,
            update=update,
            kinds=kinds,
            verbose=verbose,
            progress=progress,
        )

    return without_chatter(run, enabled=not verbose)


def convert(
    model: str,
    chosen: Selectors,
    output: Path,
    *,
    format: str = "tflite",
    verbose: bool = False,
    progress: Progress | None = None,
) -> list[Path]:
    """Loads the port and writes its files into ``output``; like ``check`` otherwise.

    Args:
        model, chosen, verbose, progress: as for ``check``.
        output: a folder.
        format: ``tflite`` or ``litertlm``.
    """

    def run() -> list[Path]:
        from edgeverify.legs.export import convert_model

        port = load_port(model)
        return convert_model(
            port,
            output=output,
            format=format,
            **chosen.arguments(),
            verbose=verbose,
            progress=progress or Progress(),
        )

    return without_chatter(run, enabled=not verbose)


def evaluate(
    model: str,
    chosen: Selectors,
    *,
    text: Path | None = None,
    tokens: int | None = None,
    window: int | None = None,
    gates: Gates | None = None,
    verbose: bool = False,
    progress: Progress | None = None,
) -> Evaluation:
    """Scores the files of a port's recipes on a text; like ``check`` otherwise.

    Args:
        model: as for ``check``.
        chosen: what to run.
        text: a file of the user's own.
        tokens: take no more than this.
        window: tokens of a window.
        gates: what the figures must be.
        verbose: lets the libraries write to the terminal.
        progress: told of the stages.
    """

    def run() -> Evaluation:
        from edgeverify.suites.quality.gate import Gates
        from edgeverify.suites.quality.run import Asked
        from edgeverify.suites.quality.run import evaluate as evaluated
        from edgeverify.suites.single_prefill import WINDOW

        gc.freeze()
        asked = Asked(text, tokens, window or WINDOW, gates or Gates())
        port = load_port(model)
        return evaluated(port, chosen, asked, verbose=verbose, progress=progress)

    return without_chatter(run, enabled=not verbose)


def bench(
    subject: str | Path,
    chosen: Selectors,
    kernels: Sequence[str],
    *,
    threads: int | None = None,
    repeats: int | None = None,
    verbose: bool = False,
    progress: Progress | None = None,
) -> Bench:
    """Times a file, or the files of a model's recipes; like ``check`` otherwise.

    Args:
        subject: a path is a file's; text names a model, as for ``check``.
        chosen: what to run, of a model.
        kernels: the LiteRT kernels.
        threads: of the interpreter; the machine's if None.
        repeats: how often each figure is measured.
        verbose: lets the libraries write to the terminal.
        progress: told of the stages.
    """

    def run() -> Bench:
        from edgeverify.suites.bench.run import REPEATS, bench_file, bench_model

        options: dict[str, Any] = {
            "threads": threads,
            "repeats": repeats or REPEATS,
            "progress": progress,
        }
        if isinstance(subject, Path):
            return bench_file(subject, kernels, **options)
        return bench_model(load_port(subject), chosen, kernels, verbose=verbose, **options)

    return without_chatter(run, enabled=not verbose)


def selftest(
    ports: Sequence[str],
    faults: Sequence[str] = (),
    *,
    quick: bool = False,
    cache: Path | None = None,
    workers: int | None = None,
    verbose: bool = False,
    progress: Progress | None = None,
) -> Result:
    """Tries the checks on faults; like ``check`` otherwise.

    Args:
        ports: registered names.
        faults: names of the catalogue; all of them if empty.
        quick: each fault on one port alone.
        cache: another cache than the default one.
        workers: processes; two if left out.
        verbose: lets the libraries write to the terminal.
        progress: told how far it is.

    Raises:
        UsageError: no such fault, or none that applies to the ports.
    """

    def run() -> Result:
        from edgeverify.suites.selftest import matrix
        from edgeverify.suites.selftest.faults import catalogue

        jobs = matrix.plan(ports, catalogue.choose(faults, ports), quick=quick)
        count = 1 if len(jobs) == 1 else workers or matrix.WORKERS
        return matrix.run(jobs, cache=cache, workers=count, prepare=hush, progress=progress)

    return without_chatter(run, enabled=not verbose)
