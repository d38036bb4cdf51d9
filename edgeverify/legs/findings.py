"""Builds the report of a check: the findings as sentences, beside the measurements."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import torch

from edgeverify.core import taps
from edgeverify.core.case import Case
from edgeverify.core.compare import POSITION_0_AGREES, thresholds
from edgeverify.core.leg import CONVERSION, QUANTIZATION, RUNTIME, Leg
from edgeverify.core.memory import peak_memory
from edgeverify.core.results import (
    BUNDLE,
    EDGES,
    FAIL,
    PASS,
    SIGNATURES,
    UNCHECKED,
    AuditResult,
    Finding,
    LegResult,
    Report,
    TapResult,
)
from edgeverify.core.store import entries
from edgeverify.core.trace import Trace
from edgeverify.hf.token_ids import remarks
from edgeverify.legs.run import Run
from edgeverify.report.advice import hint
from edgeverify.report.words import listed


def report_of(
    run: Run,
    legs: Mapping[str, LegResult],
    audits: Mapping[str, AuditResult],
    tokenizer: Any | None,
    traces: Mapping[str, Trace],
    causes: tuple[Finding, ...] = (),
) -> Report:
    """Builds the report; ``causes`` belong to failed legs, all other findings are derived here."""
    return Report(
        case=_describe(run, legs, tokenizer, traces),
        environment=entries.environment(
            threads=torch.get_num_threads(),
            time=datetime.now(UTC).isoformat(timespec="seconds"),
            **({"memory": run.memory} if run.memory else {}),
            **({"runtime": run.log.runtime} if run.log.runtime else {}),
            peak_memory=peak_memory(),
            peak_memory_after=dict(run.log.peaks),
        ),
        legs=legs,
        findings=(
            *(finding for audit in audits.values() for finding in _audit_findings(audit, legs)),
            *(
                finding
                for leg in legs.values()
                for finding in (*_findings(leg), *(c for c in causes if c.leg == leg.name))
            ),
        ),
        timings=run.log.timings,
        audits=audits,
        files=run.log.files,
    )


def _audit_findings(audit: AuditResult, legs: Mapping[str, LegResult]) -> list[Finding]:
    """Returns one finding for an audit that does not pass.

    What shows only in the file is attributed to the conversion, unless the file computes what the
    port does. In that case the port takes one tensor for another, and the file shows it.
    """
    failed = any(leg.outcome == FAIL for leg in legs.values())
    if not audit.odd or (audit.name == EDGES and audit.outcome == UNCHECKED and failed):
        return []  # edges are not walked where a leg fails, and the leg's findings say why
    seen = [check for check in audit.odd if check.outcome == audit.outcome]
    of_recipe = Leg.of(audit.name).kind == QUANTIZATION
    of_file = all(check.where.startswith("file") for check in seen) or audit.name in (
        SIGNATURES,
        BUNDLE,
    )
    told = "; ".join(listed([str(check) for check in seen]))
    suffix = ".unchecked" if audit.outcome == UNCHECKED else ""
    outcomes = {name: leg.outcome for name, leg in legs.items()}
    inherited = outcomes.get("authoring") == FAIL and outcomes.get("conversion") == PASS
    leg = "conversion" if of_file and not inherited else "authoring"
    leg = audit.name if of_recipe else leg
    return [Finding(f"audit.{audit.name}{suffix}", leg, "", told)]


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
    """A hint for the first diverging tap, based on the leg and on the step's other taps."""
    if leg.leg.kind == QUANTIZATION:
        return (
            "how the kernel computes with quantized weights: the audit has them as the recipe "
            "says, or tells which are not. Another --kernel may agree"
        )
    if leg.leg.kind == CONVERSION:
        return (
            "the file's operators between the last tap that agrees and this one: constants, fused "
            "operations, composites. If --kernel builtin agrees, it is the kernel's fault"
        )
    if leg.leg.kind == RUNTIME:
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
        "checkpoint": _checkpoint(run, tokenizer),
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


def _checkpoint(run: Run, tokenizer: Any | None) -> str:
    told = [run.checkpoint.description]
    if tokenizer is not None:
        told += remarks(tokenizer, run.case.tokens, int(run.hf_config["vocab_size"]))
    return "; ".join(told)


def _greedy(trace: Trace, case: Case) -> list[int]:
    """The greedy tokens after the prompt and after each decode step."""
    last_prefill = max(i for i, step in enumerate(case.steps) if not step.is_decode)
    keys = [f"{step.name}/{taps.LOGITS}" for step in case.steps[last_prefill:]]
    logits = [trace[key] for key in keys if key in trace]
    return [int(array[0, -1].argmax()) for array in logits if array.dtype.kind == "f"]
