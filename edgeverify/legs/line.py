"""The line of one check: the order of the legs, and what each is compared with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from edgeverify.audits.run import Auditor
from edgeverify.core.edges import Edge
from edgeverify.core.errors import NoRoomError, PortError
from edgeverify.core.judge import Baseline, judge_leg, judge_surely
from edgeverify.core.leg import AUTHORING, CONVERSION, Leg
from edgeverify.core.localise import named_alone
from edgeverify.core.results import EDGES, FAIL, UNCHECKED, Finding, LegResult
from edgeverify.core.trace import Trace
from edgeverify.legs.authoring import audit_port, find_causes, run_reauthored
from edgeverify.legs.baselines import own_baseline, reference_baselines
from edgeverify.legs.conversion import (
    audit_file,
    converted,
    every_tap_fed,
    op_sources,
    run_and_walk,
)
from edgeverify.legs.edges import EdgeWalk
from edgeverify.legs.quantization.check import check_recipes
from edgeverify.legs.run import Run
from edgeverify.legs.runtime.stages import FileRun, run_runtimes, without_taps
from edgeverify.legs.selectors import Selectors
from edgeverify.litert.contents import file_facts
from edgeverify.report.answer_parts import odd_taps
from edgeverify.report.words import LISTED


@dataclass
class CheckResult:
    """The results of a check so far.

    Attributes:
        run: its case has the reference's decode tokens.
        legs: by name, in order.
        traces: backend or leg → its trace.
        findings: what was found besides the verdicts: causes, operators, advice.
    """

    run: Run
    legs: dict[str, LegResult] = field(default_factory=dict)
    traces: dict[str, Trace] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()

    def add(self, legs: dict[str, LegResult], findings: tuple[Finding, ...] = ()) -> None:
        self.legs |= legs
        self.findings = (*self.findings, *findings)


@dataclass(frozen=True)
class Line:
    """What stays the same during one check.

    Attributes:
        chosen: what the user requested.
        auditor: collects the audits.
        tokenizer: transformers' tokenizer, or None.
    """

    chosen: Selectors
    auditor: Auditor
    tokenizer: Any | None

    def judge(self, run: Run) -> CheckResult:
        """Audits the port, then judges every requested leg.

        Raises:
            PortError: the port cannot be run; the message says what the audits see in it.
        """
        try:
            audit_port(run, self.auditor)
            return self._legs(run)
        except PortError as error:
            raise _explained(error, self.auditor.failures) from error

    def _legs(self, run: Run) -> CheckResult:
        with_file = Leg(CONVERSION) in self.chosen.legs
        run, baselines = reference_baselines(run, with_file=with_file)
        authoring = baselines[AUTHORING]
        whole, isolated = run_reauthored(run, authoring.oracle)
        notes = (run.memory,) if run.streamed else ()
        runs = LegRuns(whole, isolated, notes=notes)
        leg, authoring = judge(run, Leg(AUTHORING), runs, authoring)
        passed = leg.outcome != FAIL
        if not passed:
            run.progress.say(f"FAIL  {leg.name}: {odd_taps(leg)}; now looking for the cause")
        causes = () if passed else find_causes(run, authoring)
        traces = {"reference": authoring.own, "reauthored": whole}
        out = CheckResult(run, {leg.name: leg}, traces, causes)
        edges = EdgeWalk(run, baselines, _positions(run))
        edges.port(leg, whole)
        if with_file:
            self._file_legs(out, baselines[CONVERSION], edges, authoring_passed=passed)
        self.auditor.results[EDGES] = edges.audit
        return out

    def _file_legs(
        self, out: CheckResult, baseline: Baseline, edges: EdgeWalk, *, authoring_passed: bool
    ) -> None:
        run = out.run
        try:
            path = converted(run)
            run.log.files[CONVERSION] = file_facts(path, run.cache)
            audit_file(run, self.auditor, path)
            own = None if authoring_passed else out.traces["reauthored"]
            file, walked = conversion_leg(run, path, baseline, own, edges.of_file)
        except Exception as error:
            # A model that is known to be wrong may be one that cannot be converted or run. That
            # must not discard what is already known, and neither must a file too large for this
            # machine.
            if authoring_passed and not isinstance(error, NoRoomError):
                raise
            reason = f"not possible with this port: {type(error).__name__}: {error}"
            if isinstance(error, NoRoomError):
                reason = str(error)
            for leg in self.chosen.legs[1:]:
                why = reason if leg.kind == CONVERSION else "there is no file to run"
                out.add({str(leg): without_taps(leg, UNCHECKED, why)})
            return
        out.traces["tflite"] = file.trace
        out.add({file.leg.name: file.leg}, file.sources)
        edges.file(file.leg, walked)
        self._run_elsewhere(out, file)
        wrong = AUTHORING if not authoring_passed else ""
        self._quantized_legs(out, file, baseline, wrong)

    def _run_elsewhere(self, out: CheckResult, file: FileRun) -> None:
        """Runs a file in the other requested runtimes."""
        chosen, refusal = self.chosen.runtimes, self.auditor.engine_refusal
        out.add(*run_runtimes(out.run, chosen, file, self.tokenizer, refusal))

    def _quantized_legs(
        self, out: CheckResult, file: FileRun, original: Baseline, wrong: str
    ) -> None:
        """Quantizes the float file by each recipe, then audits, judges and runs the results.

        Args:
            out: the results are added to it.
            file: the float file after its leg.
            original: the reference with the checkpoint's own weights.
            wrong: an earlier leg that fails, or "".
        """
        wrong = wrong or (file.leg.name if file.leg.outcome == FAIL else "")
        blocked = (
            f"not judged: the float file that it is made from fails ({wrong})" if wrong else ""
        )
        recipes = self.chosen.recipes
        for checked in check_recipes(out.run, recipes, file.path, original, blocked=blocked):
            leg = checked.leg.leg
            out.add({str(leg): checked.leg})
            if checked.audit is not None:
                self.auditor.results[str(leg)] = checked.audit
            if checked.file is None:
                reason = "there is no file that was judged"
                others = [leg.in_runtime(runtime) for runtime in self.chosen.runtimes]
                out.add({str(o): without_taps(o, UNCHECKED, reason) for o in others})
                continue
            out.traces[str(leg)] = checked.file.trace
            out.run.log.files[str(leg)] = file_facts(checked.file.path, out.run.cache)
            self._run_elsewhere(out, checked.file)


@dataclass(frozen=True)
class LegRuns:
    """The runs that a leg is judged by: as a whole and, if available, block by block.

    Attributes:
        path: the file that ran; None for the re-authored model.
        notes: copied into the result.
    """

    whole: Trace
    isolated: Trace | None
    path: Path | None = None
    notes: tuple[str, ...] = ()


def conversion_leg(
    run: Run, path: Path, baseline: Baseline, own: Trace | None, edges: Sequence[Edge] = ()
) -> tuple[FileRun, Trace]:
    """Runs the float file and judges it; if it fails, names the operators.

    If authoring passed, the file is compared with the reference's oracle, and that verdict stands.
    If authoring failed, the file is compared with the re-authored model's own float64 run: the
    converter is then neither blamed for the port's fault nor excused by it.

    Args:
        run: its case is run.
        path: the file.
        baseline: of the reference.
        own: the trace of the re-authored model if it differs from the reference; else None.
        edges: are walked with the file.

    Returns:
        The judged run, and the trace of the edges.
    """
    notes: tuple[str, ...] = ()
    if own is not None:
        baseline = own_baseline(run, own, baseline)
        notes = ("judged against the re-authored model's own float64 run",)
    whole, isolated, walked = run_and_walk(run, path, baseline.oracle, edges)
    if packing := whole.provenance.get("packing"):
        notes = (*notes, packing)
    runs = LegRuns(whole, isolated, path, notes)
    leg, baseline = judge(run, Leg(CONVERSION), runs, baseline)
    sources = op_sources(run, path, leg) if leg.outcome == FAIL else ()
    return FileRun(path, leg, whole, baseline, sources), walked


def judge(run: Run, leg: Leg, runs: LegRuns, baseline: Baseline) -> tuple[LegResult, Baseline]:
    """Judges a leg; if it fails, one more run names every faulty sublayer.

    Returns:
        The result, and the baseline that it was reached with.
    """
    starts, expected = run.case.starts, run.expected(baseline.oracle)
    result, baseline = judge_surely(
        lambda against: judge_leg(
            leg, runs.whole, runs.isolated, against, expected, starts, notes=runs.notes
        ),
        baseline,
    )
    divergence = result.first_divergence
    if divergence is None:
        return result, baseline
    fed = every_tap_fed(run, baseline.oracle, runs.path)
    named = named_alone(divergence.isolated, fed, baseline, expected, starts)
    return replace(result, first_divergence=replace(divergence, isolated=named)), baseline


def _positions(run: Run) -> int:
    config: Any = run.model().config
    return int(config.max_seq_len)


def _explained(error: PortError, failures: Sequence[str]) -> PortError:
    """Returns the error of a port that cannot be run, with what the audits see in it."""
    if not failures:
        return error
    told = "; ".join(failures[:LISTED])
    return PortError(
        error.what, where=error.where, expected=error.expected, fix=f"the audits found {told}"
    )
