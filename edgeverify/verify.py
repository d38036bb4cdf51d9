"""The whole line: port and checkpoint → case → backends → traces → comparison → report.

One whole model is resident at a time beside the weights themselves; what a later comparison needs
is activations.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from edgeverify import artifacts, inputs, taps
from edgeverify.audits.model import SIGNATURES, AuditResult
from edgeverify.audits.run import Auditor
from edgeverify.case import Case
from edgeverify.checkpoints import open_checkpoint
from edgeverify.compare import POSITION_0_AGREES, Baseline, judge_leg, thresholds
from edgeverify.errors import PortError
from edgeverify.file_legs import file_legs
from edgeverify.hints import hint
from edgeverify.ports import load_port
from edgeverify.progress import Progress
from edgeverify.quantization.leg import LEG as QUANTIZATION
from edgeverify.report.model import FAIL, PASS, UNCHECKED, Finding, LegResult, Report, TapResult
from edgeverify.report.words import LISTED
from edgeverify.runtime_stages import LITERT_LM, FileRun, require_engine, without_taps
from edgeverify.selectors import Selectors
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
from edgeverify.trace import Trace
from models.port import Port


def verify(
    port: Port | str,
    *,
    invariants: bool = False,
    verbose: bool = False,
    progress: Progress | None = None,
    **selectors: Any,
) -> Report:
    """Says whether a port, and the file converted from it, are the Hugging Face model.

    Args:
        port: a port, a registered name, ``package.module:ATTR`` or ``path/to/file.py:ATTR``.
        invariants: ask for the contracts of cache, mask, padding and batch, too.
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
    with fitting_threads(run):
        for_engine = LITERT_LM in chosen.runtimes
        auditor = Auditor(run.hf_config, run.case, run.port.mask_kinds, for_engine)
        try:
            audit_port(run, auditor)
            legs, traces, causes = _judge_legs(run, chosen, auditor, tokenizer)
        except PortError as error:
            raise _explained(error, auditor.failures) from error
        report = report_of(run, legs, auditor.results, tokenizer, traces, causes)
    if not invariants:
        return report
    from edgeverify.invariants.examination import Examination

    name = port if isinstance(port, str) else port.name
    results = tuple(Examination(run, name, chosen).all())
    return replace(report, invariants=results)


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
    legs = {"authoring": _judge(run, "authoring", whole, isolated, authoring)}
    passed = legs["authoring"].outcome != FAIL
    causes = () if passed else find_causes(run, authoring)
    if "conversion" not in chosen.legs:
        return legs, traces, causes
    try:
        path = converted(run)
        file = _conversion_leg(
            run, path, auditor, whole, baselines["conversion"], authoring_passed=passed
        )
    except Exception as error:
        # A model that is known to be wrong may well be one that cannot be converted or run; what
        # is known must not be lost over it.
        if passed:
            raise
        reason = f"not possible with this port: {type(error).__name__}: {error}"
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
        tokenizer = inputs.load_tokenizer(
            opened.tokenizer_dir, opened.gguf_file, trust_remote_code=chosen.trust_remote_code
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


def report_of(
    run: Run,
    legs: Mapping[str, LegResult],
    audits: Mapping[str, AuditResult],
    tokenizer: Any | None,
    traces: Mapping[str, Trace],
    causes: tuple[Finding, ...] = (),
) -> Report:
    """The report of what was found; ``causes`` belong to legs, the rest is told by itself."""
    return Report(
        case=_describe(run, legs, tokenizer, traces),
        environment={
            **artifacts.versions(),
            "python": platform.python_version(),
            "machine": platform.machine(),
            "threads": torch.get_num_threads(),
        },
        legs=legs,
        findings=(
            *(finding for audit in audits.values() for finding in _audit_findings(audit, legs)),
            *(
                finding
                for leg in legs.values()
                for finding in (*_findings(leg), *(c for c in causes if c.leg == leg.name))
            ),
        ),
        timings=run.timings,
        audits=audits,
    )


def _audit_findings(audit: AuditResult, legs: Mapping[str, LegResult]) -> list[Finding]:
    """One finding for an audit that is no pass.

    What is seen in the file alone is the conversion's, unless the file computes what the port
    does: then it is the port that takes one tensor for another, and the file shows it.
    """
    if not audit.odd:
        return []
    seen = [check for check in audit.odd if check.outcome == audit.outcome]
    of_recipe = audit.name.startswith(QUANTIZATION)
    of_file = all(check.where.startswith("file") for check in seen) or audit.name == SIGNATURES
    told = "; ".join(str(check) for check in seen[:LISTED])
    more = f"; and {len(seen) - LISTED} more" if len(seen) > LISTED else ""
    suffix = ".unchecked" if audit.outcome == UNCHECKED else ""
    outcomes = {name: leg.outcome for name, leg in legs.items()}
    inherited = outcomes.get("authoring") == FAIL and outcomes.get("conversion") == PASS
    leg = "conversion" if of_file and not inherited else "authoring"
    leg = audit.name if of_recipe else leg
    return [Finding(f"audit.{audit.name}{suffix}", leg, "", told + more)]


def _findings(leg: LegResult) -> list[Finding]:
    if leg.outcome == UNCHECKED:
        return [Finding(f"{leg.name}.unchecked", leg.name, "", leg.reason)]
    divergence = leg.first_divergence
    if divergence is None:
        return []
    failed = next(result for result in leg.taps if result.tap == divergence.tap)
    message = f"{failed.reason}. Look at {_where_to_look(leg, failed)}."
    return [Finding(f"{leg.name}.divergence", leg.name, divergence.tap, message)]


def _where_to_look(leg: LegResult, failed: TapResult) -> str:
    """A hint for the first diverging tap, with what the leg and the step's other taps tell."""
    if leg.name.startswith(QUANTIZATION):
        return (
            "how the kernel computes with quantized weights: the audit has them as the recipe "
            "says, or tells which are not. Another --kernel may agree"
        )
    if leg.name == "conversion":
        return (
            "the file's operators between the last tap that agrees and this one: constants, fused "
            "operations, composites. If --kernel builtin agrees, it is the kernel's fault"
        )
    if leg.name.startswith("runtime:"):
        return (
            "how this runtime runs the file: the LiteRT interpreter's own results are the leg "
            "conversion's. If --kernel builtin agrees, it is the kernel's fault"
        )
    step, tap = taps.split(failed.tap)
    block = taps.block_index(tap)
    if tap.endswith((".attn.q", ".attn.k")) and POSITION_0_AGREES in failed.reason:
        return "RoPE, which leaves position 0 alone: base, rotary share, interleaved or halves"
    outcomes = {result.tap: result.outcome for result in leg.taps}
    if block is not None and tap == taps.block(block, "attn.out"):
        written = [outcomes.get(f"{step}/{taps.kv(block, which)}") for which in "kv"]
        if FAIL in written:
            return (
                f"how the cache of block {block} is written (row, input_pos, layout): it is wrong "
                "in the same step, although k and v agree"
            )
    return hint(failed.tap)


def _describe(
    run: Run,
    legs: Mapping[str, LegResult],
    tokenizer: Any | None,
    traces: Mapping[str, Trace],
) -> dict[str, Any]:
    case = run.case
    greedy = {name: _greedy(trace, case) for name, trace in traces.items()}
    described = {key: value for key, value in asdict(case).items() if key != "steps"}
    described |= {
        "checkpoint": run.checkpoint.description,
        "steps": [
            {
                "name": step.name,
                "signature": step.signature,
                "start": step.start,
                "tokens": len(step.tokens),
                "padding": step.length - len(step.tokens),
            }
            for step in case.steps
        ],
        "thresholds": {
            **{name: dict(leg.threshold) for name, leg in legs.items()},
            "isolated": thresholds("isolated").as_dict(),
        },
        "greedy_tokens": greedy,
    }
    if tokenizer is not None:
        described["continuation"] = {name: tokenizer.decode(ids) for name, ids in greedy.items()}
    return described


def _greedy(trace: Trace, case: Case) -> list[int]:
    """The token that follows the prompt, and the one that follows each decode step."""
    last_prefill = max(i for i, step in enumerate(case.steps) if not step.is_decode)
    keys = [f"{step.name}/{taps.LOGITS}" for step in case.steps[last_prefill:]]
    logits = [trace[key] for key in keys if key in trace]
    return [int(array[0, -1].argmax()) for array in logits if array.dtype.kind == "f"]
