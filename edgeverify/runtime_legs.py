"""The legs ``runtime``: the files of a check, float and quantized, in other runtimes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from edgeverify.audits.run import Auditor
from edgeverify.compare import thresholds
from edgeverify.errors import ArtifactError
from edgeverify.report.model import FAIL, UNCHECKED, Finding, LegResult
from edgeverify.stages import FileRun, Run, run_engine, run_runtime

LEG = "runtime"
ENGINE = "litert_lm"
Judged = tuple[LegResult, tuple[Finding, ...]]


def runtime_legs(
    run: Run, runtimes: Sequence[str], file: FileRun, auditor: Auditor, tokenizer: Any | None
) -> Iterator[Judged]:
    """Runs one file in each runtime.

    Args:
        run: of the checkpoint.
        runtimes: which.
        file: as the LiteRT interpreter ran it.
        auditor: knows what the engine would refuse.
        tokenizer: of transformers, which the engine's is held against.

    Yields:
        The leg, ``runtime:{runtime}`` or, of a recipe, ``runtime:{runtime}:{recipe}``; findings.
    """
    recipe = file.leg.name.partition(":")[2]
    for runtime in runtimes:
        name = ":".join(part for part in (LEG, runtime, recipe) if part)
        if runtime == ENGINE:
            yield _engine_leg(run, auditor, tokenizer, file, name)
        else:
            leg = run_runtime(run, runtime, file.path, file.leg, file.trace, file.baseline)
            yield _renamed(leg, name), ()


def _engine_leg(run: Run, auditor: Auditor, tokenizer: Any, file: FileRun, name: str) -> Judged:
    """LiteRT-LM's leg; what the audit knows that the engine refuses is not given to it."""
    limits = thresholds(LEG).as_dict()
    if refusal := auditor.engine_refusal:
        return LegResult(name, UNCHECKED, limits, reason=f"not asked: {refusal}"), ()
    try:
        leg, findings = run_engine(run, tokenizer, file.path, file.trace, file.baseline)
    except ArtifactError as error:
        return LegResult(name, FAIL, limits, reason=error.what), ()
    return _renamed(leg, name), tuple(_of(finding, name) for finding in findings)


def _renamed(leg: LegResult, name: str) -> LegResult:
    return replace(leg, name=name)


def _of(finding: Finding, name: str) -> Finding:
    return replace(finding, leg=name)
