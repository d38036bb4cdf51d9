"""The whole line: port and checkpoint → case → backends → traces → comparison → report.

One whole model is resident at a time beside the weights themselves; what a later comparison needs
is activations.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgeverify import inputs
from edgeverify.audits.model import unchecked
from edgeverify.audits.run import Auditor
from edgeverify.checkpoints import open_checkpoint
from edgeverify.compare import Baseline, judge_leg, thresholds
from edgeverify.errors import NoRoomError, PortError
from edgeverify.file_facts import file_facts
from edgeverify.file_legs import file_legs
from edgeverify.findings import report_of
from edgeverify.memory_plan import plan_memory
from edgeverify.ports import load_port
from edgeverify.progress import Progress
from edgeverify.quantization.leg import LEG as QUANTIZATION
from edgeverify.report.model import FAIL, UNCHECKED, Finding, LegResult, Report
from edgeverify.report.words import LISTED
from edgeverify.runtime_stages import LITERT_LM, FileRun, require_engine, without_taps
from edgeverify.selectors import GOLDENS, Selectors
from edgeverify.stages import (
    Run,
    audit_file,
    audit_port,
    converted,
    every_tap_fed,
    find_causes,
    fitting_threads,
    op_sources,
    own_baseline,
    reference_baselines,
    run_file,
    run_reauthored,
)
from edgeverify.sublayers import named_alone
from edgeverify.tokens import RememberedTokenizer
from edgeverify.trace import Trace
from models.port import Port


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
        invariants: ask for the contracts of cache, mask, padding and batch, too.
        golden: a folder whose goldens are to be compared with, too.
        verbose: show what the converter prints.
        progress: told of each stage.
        selectors: what to run: the fields of ``edgeverify.selectors.Selectors``.

    Returns:
        The report. A leg that fails does not raise.

    Raises:
        EdgeVerifyError: bad usage or bad input.
    """
    chosen = Selectors.of(**selectors)
    run, tokenizer = prepare(port, chosen, verbose=verbose, progress=progress)
    quantized = any(name.startswith(QUANTIZATION) for name in chosen.legs)
    plan = plan_memory(run, chosen.memory_budget, quantized=quantized)
    run.streamed = plan.stream
    run.memory, run.memory_budget = str(plan), plan.budget
    if not plan.fits:
        legs = {name: without_taps(name, UNCHECKED, run.memory) for name in chosen.legs}
        audits = {name: unchecked(name, "model", run.memory) for name in chosen.audits}
        return _asked(report_of(run, legs, audits, tokenizer, {}), port, chosen)
    with fitting_threads(run):
        for_engine = LITERT_LM in chosen.runtimes
        auditor = Auditor(run.hf_config, run.case, run.port.mask_kinds, for_engine, cache=run.cache)
        try:
            audit_port(run, auditor)
            legs, traces, causes = _judge_legs(run, chosen, auditor, tokenizer)
        except PortError as error:
            raise _explained(error, auditor.failures) from error
        report = report_of(run, legs, auditor.results, tokenizer, traces, causes)
    report = _asked(report, port, chosen)
    if golden is not None:
        kept = verify_goldens(port, chosen, golden, verbose=verbose, progress=progress)
        report = replace(report, goldens=kept.goldens)
    if not invariants:
        return report
    from edgeverify.invariants.examination import Examination

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
    """Holds a port against its goldens: a report without legs.

    Args:
        port, verbose, progress: as for ``verify``.
        chosen: what to run; the steps are the golden's own.
        directory: of the goldens.
        update: rewrite them from this run; then, and where one is missing and is written, the
            outcome is ``fail``.
        kinds: which of the goldens.

    Raises:
        EdgeVerifyError: bad input.
    """
    from edgeverify import golden_run

    name = port if isinstance(port, str) else port.name
    run, tokenizer = prepare(port, golden_run.selectors(chosen), verbose=verbose, progress=progress)
    with fitting_threads(run):
        results = golden_run.check(run, name, chosen, directory, update=update, kinds=kinds)
        report = report_of(run, {}, {}, tokenizer, {})
    return replace(report, goldens=results)


def _asked(report: Report, port: Port | str, chosen: Selectors) -> Report:
    """The report with the command that makes it again, where its port has a name to be given."""
    if not isinstance(port, str):
        return report
    command = f"edgeverify check {shlex.quote(port)} {chosen.options()}".rstrip()
    return replace(report, case={**report.case, "command": command})


def _explained(error: PortError, failures: Sequence[str]) -> PortError:
    """The error of a port that cannot be run, with what the audits see in it."""
    if not failures:
        return error
    told = "; ".join(failures[:LISTED])
    return PortError(
        error.what, where=error.where, expected=error.expected, fix=f"the audits found {told}"
    )


def _judge_legs(
    run: Run, chosen: Selectors, auditor: Auditor, tokenizer: Any
) -> tuple[dict[str, LegResult], dict[str, Trace], tuple[Finding, ...]]:
    baselines = reference_baselines(run, with_file="conversion" in chosen.legs)
    authoring = baselines["authoring"]
    whole, isolated = run_reauthored(run, authoring.oracle)
    traces = {"reference": authoring.own, "reauthored": whole}
    notes = (run.memory,) if run.streamed else ()
    legs = {"authoring": _judge(run, "authoring", whole, isolated, authoring, notes=notes)}
    passed = legs["authoring"].outcome != FAIL
    causes = () if passed else find_causes(run, authoring)
    if "conversion" not in chosen.legs:
        return legs, traces, causes
    try:
        path = converted(run)
        run.files["conversion"] = file_facts(path, run.cache)
        file = _conversion_leg(
            run, path, auditor, whole, baselines["conversion"], authoring_passed=passed
        )
    except Exception as error:
        # A model that is known to be wrong may well be one that cannot be converted or run; what
        # is known must not be lost over it, nor over a file that is too large for this machine.
        if passed and not isinstance(error, NoRoomError):
            raise
        reason = f"not possible with this port: {type(error).__name__}: {error}"
        if isinstance(error, NoRoomError):
            reason = str(error)
        limits = thresholds("conversion").as_dict()
        legs["conversion"] = LegResult("conversion", UNCHECKED, limits, reason=reason)
        for name in chosen.legs[len(legs) :]:
            legs[name] = without_taps(name, UNCHECKED, "there is no file to run")
        return legs, traces, causes
    legs["conversion"], traces["tflite"] = file.leg, file.trace
    more = file_legs(run, chosen, auditor, file, baselines["conversion"], tokenizer, passed)
    legs, traces = {**legs, **more.legs}, {**traces, **more.traces}
    return legs, traces, (*causes, *file.sources, *more.findings)


def prepare(
    port: Port | str, chosen: Selectors, *, verbose: bool, progress: Progress | None
) -> tuple[Run, Any | None]:
    """Opens the checkpoint and plans the case; loads no weights."""
    resolved = load_port(port) if isinstance(port, str) else port
    opened = open_checkpoint(
        chosen.checkpoint,
        resolved,
        size=chosen.size,
        seed=chosen.seed,
        trust_remote_code=chosen.trust_remote_code,
        cache_root=chosen.cache,
    )
    try:
        max_positions = resolved.model_config(opened.hf_config).max_seq_len
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise PortError(
            f"model_config raised {type(error).__name__}: {error}",
            where=f"port {resolved.name!r}",
            expected="a ModelConfig of this HF config",
            fix="correct the port's model_config, or take another checkpoint",
        ) from error
    tokenizer = None
    if opened.tokenizer_dir is not None:
        tokenizer = RememberedTokenizer(
            opened.tokenizer_dir,
            opened.gguf_file,
            trust_remote_code=chosen.trust_remote_code,
            cache=chosen.cache,
        )
    require_engine(chosen.runtimes, tokenizer)
    case = inputs.plan_case(
        resolved.name, opened.size, opened.hf_config, tokenizer, chosen, max_positions
    )
    run = Run(resolved, opened, case, chosen.cache, verbose, progress or Progress())
    return run, tokenizer


def _conversion_leg(
    run: Run,
    path: Path,
    auditor: Auditor,
    reauthored: Trace,
    baseline: Baseline,
    *,
    authoring_passed: bool,
) -> FileRun:
    """Runs the float file and judges it; where it fails, names the operators.

    Where authoring passed, the file is held against the reference's oracle, and that verdict
    stands. Where it failed, the file is held against the re-authored model's own float64 run, so
    that the converter is neither charged with the port's fault nor excused by it.
    """
    audit_file(run, auditor, path)
    notes: tuple[str, ...] = ()
    if not authoring_passed:
        baseline = own_baseline(run, reauthored, baseline)
        notes = ("judged against the re-authored model's own float64 run",)
    whole, isolated = run_file(run, path, baseline.oracle)
    if packing := whole.provenance.get("packing"):
        notes = (*notes, packing)
    leg = _judge(run, "conversion", whole, isolated, baseline, path=path, notes=notes)
    sources = op_sources(run, path, leg) if leg.outcome == FAIL else ()
    return FileRun(path, leg, whole, baseline, sources)


def _judge(
    run: Run,
    name: str,
    whole: Trace,
    isolated: Trace | None,
    baseline: Baseline,
    *,
    path: Path | None = None,
    notes: tuple[str, ...] = (),
) -> LegResult:
    """Judges a leg; where it fails, every faulty sublayer is named, with one more run."""
    starts = {step.name: step.start for step in run.case.steps}
    expected = run.expected(baseline.oracle)
    leg = judge_leg(name, whole, isolated, baseline, expected, starts, notes=notes)
    divergence = leg.first_divergence
    if divergence is None:
        return leg
    fed = every_tap_fed(run, baseline.oracle, path)
    named = named_alone(divergence.isolated, fed, baseline, expected, starts)
    return replace(leg, first_divergence=replace(divergence, isolated=named))
