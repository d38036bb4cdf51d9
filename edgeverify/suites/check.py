"""The whole check: port and checkpoint → case → backends → traces → comparison → report.

One whole model is in memory at a time, besides the weights themselves; later comparisons need only
activations.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgeverify.audits.run import Auditor
from edgeverify.core.leg import QUANTIZATION
from edgeverify.core.progress import Progress
from edgeverify.core.results import UNCHECKED, Report, unchecked
from edgeverify.legs.findings import report_of
from edgeverify.legs.line import Line
from edgeverify.legs.memory_plan import plan_memory
from edgeverify.legs.run import fitting_threads, prepare
from edgeverify.legs.runtime.stages import without_taps
from edgeverify.legs.selectors import GOLDENS, Selectors
from edgeverify.legs.settle import settled
from edgeverify.litert.bundle.writer import LITERT_LM
from edgeverify_models.port import Port


def verify(
    port: Port | str,
    *,
    invariants: bool = False,
    golden: Path | None = None,
    verbose: bool = False,
    progress: Progress | None = None,
    **selectors: Any,
) -> Report:
    """Says whether a port, and the file converted from it, are the Hugging Face model.

    Args:
        port: a port, a registered name, ``package.module:ATTR`` or ``path/to/file.py:ATTR``.
        invariants: also check the contracts of cache, mask, padding and batch.
        golden: a folder of goldens to compare with, too.
        verbose: show what the converter prints.
        progress: receives each stage.
        selectors: what to run: the fields of ``edgeverify.legs.selectors.Selectors``.

    Returns:
        The report. A leg that fails does not raise.

    Raises:
        EdgeVerifyError: bad usage or bad input.
    """
    chosen = Selectors.of(**selectors)
    run, tokenizer = prepare(port, chosen, verbose=verbose, progress=progress)
    quantized = any(leg.kind == QUANTIZATION for leg in chosen.legs)
    plan = plan_memory(run, chosen.memory_budget, quantized=quantized)
    run = replace(run, streamed=plan.stream, memory=str(plan), memory_budget=plan.budget)
    if not plan.fits:
        legs = {str(leg): without_taps(leg, UNCHECKED, run.memory) for leg in chosen.legs}
        audits = {name: unchecked(name, "model", run.memory) for name in chosen.audits}
        return _asked(report_of(run, legs, audits, tokenizer, {}), port, chosen)
    with fitting_threads(run):
        for_engine = LITERT_LM in chosen.runtimes
        auditor = Auditor(run.hf_config, run.case, for_engine, cache=run.cache)
        judged = Line(chosen, auditor, tokenizer).judge(run)
        run = judged.run
        audits = settled(auditor.results, judged.legs, run.case)
        report = report_of(run, judged.legs, audits, tokenizer, judged.traces, judged.findings)
    report = _asked(report, port, chosen)
    if golden is not None:
        kept = verify_goldens(port, chosen, golden, verbose=verbose, progress=progress)
        report = replace(report, goldens=kept.goldens)
    if not invariants:
        return report
    from edgeverify.suites.invariants.examination import Examination

    name = port if isinstance(port, str) else port.name
    results = tuple(Examination(run, name, chosen).all())
    return replace(report, invariants=results)


def verify_goldens(
    port: Port | str,
    chosen: Selectors,
    directory: Path,
    *,
    update: bool = False,
    kinds: Sequence[str] = GOLDENS,
    verbose: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Compares a port with its goldens and returns a report without legs.

    Args:
        port, verbose, progress: as for ``verify``.
        chosen: what to run; the steps are the golden's own.
        directory: of the goldens.
        update: rewrite them from this run. The outcome is ``fail`` for a golden that is rewritten,
            and for a missing one that is written.
        kinds: which of the goldens.

    Raises:
        EdgeVerifyError: bad input.
    """
    from edgeverify.suites.golden import run as golden_run

    name = port if isinstance(port, str) else port.name
    run, tokenizer = prepare(port, golden_run.selectors(chosen), verbose=verbose, progress=progress)
    with fitting_threads(run):
        results = golden_run.check(run, name, chosen, directory, update=update, kinds=kinds)
        report = report_of(run, {}, {}, tokenizer, {})
    return replace(report, goldens=results)


def _asked(report: Report, port: Port | str, chosen: Selectors) -> Report:
    """Adds the command that makes the report again, if its port was named by a string."""
    if not isinstance(port, str):
        return report
    command = f"edgeverify check {shlex.quote(port)} {chosen.options()}".rstrip()
    return replace(report, case={**report.case, "command": command})
