"""The legs that start from the float file: its other runtimes, and every recipe's file."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from edgeverify.audits.run import Auditor
from edgeverify.core.compare import Baseline
from edgeverify.core.results import FAIL, UNCHECKED, Finding, LegResult
from edgeverify.core.trace import Trace
from edgeverify.litert.contents import file_facts
from edgeverify.quantization.check import check_recipes
from edgeverify.quantization.leg import LEG
from edgeverify.runtime_stages import FileRun, run_runtimes, without_taps
from edgeverify.selectors import Selectors
from edgeverify.stages import Run


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
