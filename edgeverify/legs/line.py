"""The line of one check: which leg runs after which, and what each is compared with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from edgeverify.audits.run import Auditor
from edgeverify.core.compare import Baseline, judge_leg, thresholds
from edgeverify.core.errors import NoRoomError, PortError
from edgeverify.core.localise import named_alone
from edgeverify.core.results import FAIL, UNCHECKED, Finding, LegResult
from edgeverify.core.trace import Trace
from edgeverify.legs.authoring import find_causes, run_reauthored
from edgeverify.legs.baselines import own_baseline, reference_baselines
from edgeverify.legs.conversion import audit_file, converted, every_tap_fed, op_sources, run_file
from edgeverify.legs.quantization.check import check_recipes
from edgeverify.legs.quantization.leg import LEG
from edgeverify.legs.run import Run
from edgeverify.legs.runtime.stages import FileRun, run_runtimes, without_taps
from edgeverify.legs.selectors import Selectors
from edgeverify.litert.contents import file_facts
from edgeverify.report.words import LISTED


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


@dataclass
class Legs:
    """Legs by name, in order, with the traces of their files and what was found."""

    legs: dict[str, LegResult] = field(default_factory=dict)
    traces: dict[str, Trace] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()

    def add(self, legs: dict[str, LegResult], findings: tuple[Finding, ...]) -> None:
        self.legs |= legs
        self.findings = (*self.findings, *findings)


def file_legs(
    run: Run,
    chosen: Selectors,
    auditor: Auditor,
    file: FileRun,
    original: Baseline,
    tokenizer: Any | None,
    authoring_passed: bool,
) -> Legs:
    """Runs the float file in other runtimes, then quantizes, audits, judges and runs each recipe.

    Args:
        run: of the check.
        chosen: the recipes and runtimes.
        auditor: given the audits of quantized files; knows what LiteRT-LM would refuse.
        file: the float file after its leg.
        original: the reference with the checkpoint's own weights.
        tokenizer: of transformers, or None.
        authoring_passed: whether the re-authored model is the reference.
    """
    out = Legs()
    refusal = auditor.engine_refusal
    out.add(*run_runtimes(run, chosen.runtimes, file, tokenizer, refusal))
    wrong = (
        "authoring" if not authoring_passed else file.leg.name if file.leg.outcome == FAIL else ""
    )
    blocked = f"not judged: the float file that it is made from fails ({wrong})" if wrong else ""
    for checked in check_recipes(run, chosen.recipes, file.path, original, blocked=blocked):
        name = checked.leg.name
        suffix = name[len(LEG) :]
        out.legs[name] = checked.leg
        if checked.audit is not None:
            auditor.results[name] = checked.audit
        if checked.file is None:
            others = [f"runtime:{runtime}{suffix}" for runtime in chosen.runtimes]
            reason = "there is no file that was judged"
            out.legs |= {other: without_taps(other, UNCHECKED, reason) for other in others}
            continue
        out.traces[name] = checked.file.trace
        run.files[name] = file_facts(checked.file.path, run.cache)
        out.add(*run_runtimes(run, chosen.runtimes, checked.file, tokenizer, refusal, suffix))
    return out
