"""Audits a file without its module: compares its contents with HF config and checkpoint.

The audits are those of ``edgeverify.audits``, but without the re-authored module, because the file
may come from another one. What only a module would show is left to the run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgeverify.audits.attributes import odd_attributes
from edgeverify.audits.config import audit_config, audit_mask_inputs
from edgeverify.audits.file_reading import Subject
from edgeverify.audits.file_weights import audit_file
from edgeverify.audits.model import Readings
from edgeverify.audits.of_file import of_file
from edgeverify.audits.promises import Promises
from edgeverify.audits.signatures import audit_signatures
from edgeverify.core.results import (
    CONFIG,
    NOT_APPLICABLE,
    SIGNATURES,
    UNCHECKED,
    WEIGHTS,
    AuditResult,
    Check,
    merged,
    unchecked,
)
from edgeverify.legs.foreign.case import FileCase
from edgeverify.litert.flatbuffer import ModelFile, locate_taps
from edgeverify.litert.flatbuffer.weights import Weights, find_weights
from edgeverify.litert.interface import DECODE, SHAPES, Facts
from edgeverify.litert.recipes import Recipe

LEFT_TO_THE_RUN = "a file does not say it; what it computes is judged by the leg conversion"


def audit(
    path: Path, case: FileCase, facts: Facts, subject: Subject, recipe: Recipe | None = None
) -> dict[str, AuditResult]:
    """Makes the three audits. What cannot be read is ``unchecked``, with the exception.

    Args:
        path: the .tflite, which a child has read without harm.
        case: the file's case.
        facts: the file's facts.
        subject: the model that the file is to be.
        recipe: the recipe that made the file, if it is known.
    """
    file = ModelFile(path)
    said, hf_config = subject.declared, subject.hf_config
    results = {
        SIGNATURES: _made(SIGNATURES, lambda: _signatures(file, case, facts, said)),
    }
    if facts.layout_from == SHAPES:
        reason = "the file's constants cannot be told apart where its KV cache writes are unknown"
        return results | {name: unchecked(name, "file", reason) for name in (CONFIG, WEIGHTS)}
    found: dict[str, Weights] = {}

    def weights() -> dict[str, Weights]:
        if not found:
            names = [name for name in file.signatures if name not in facts.others]
            found.update((n, find_weights(file, n, locate_taps(file, n))) for n in names)
        return found

    def read() -> AuditResult:
        reading = of_file(file, weights()[DECODE], said.values.get("rotary base"))
        others = [name for name in weights() if name != DECODE]
        odd = odd_attributes(said, weights(), others)
        read = _config(said, reading, hf_config, case)
        return merged(CONFIG, [read, AuditResult(CONFIG, odd)])

    results[CONFIG] = _made(CONFIG, read)
    promises = Promises(recipe) if recipe else None
    results[WEIGHTS] = _made(
        WEIGHTS, lambda: audit_file(file, weights(), subject.config, subject.state, said, promises)
    )
    return results


def _made(name: str, make: Callable[[], AuditResult]) -> AuditResult:
    try:
        return make()
    except Exception as error:
        return unchecked(name, "file", f"cannot be read: {type(error).__name__}: {error}")


def _config(
    said: Readings,
    reading: Readings,
    hf_config: Mapping[str, Any],
    case: FileCase,
) -> AuditResult:
    found = audit_config(said, [reading], rows=case.kv_cache_len)
    # If a field has no place, nothing in the file shows it.
    checks = tuple(
        c if c.where else replace(c, outcome=NOT_APPLICABLE, reason=LEFT_TO_THE_RUN)
        for c in found.checks
    )
    parts = [replace(found, checks=checks)]
    if case.mask_as_input:
        parts.append(audit_mask_inputs(said, case.mask_kinds))
    return merged(CONFIG, parts)


def _signatures(file: ModelFile, case: FileCase, facts: Facts, said: Readings) -> AuditResult:
    found = audit_signatures(file, case, said)
    checks: list[Check] = []
    for check in found.checks:
        if check.item in facts.others:
            reason = f"it is not run: it {facts.others[check.item]}"
            checks.append(replace(check, outcome=UNCHECKED, reason=reason))
        elif check.item.startswith("KV ") and facts.layout_from == SHAPES:
            reason = "told by shapes alone"
            checks.append(replace(check, outcome=UNCHECKED, found=check.expected, reason=reason))
        elif not (check.item.startswith(f"{DECODE} ") and facts.decode_batch > 1):
            checks.append(check)
    if facts.decode_batch > 1:
        reason = f"it is not run: it takes {facts.decode_batch} conversations at once"
        checks.append(Check(DECODE, "file", UNCHECKED, reason=reason))
    for name in case.unused:
        if name != DECODE or facts.decode_batch == 1:
            reason = f"it is not run: its cache of {facts.kv_cache_len} rows has no room for it"
            checks.append(Check(name, "file", UNCHECKED, reason=reason))
    return replace(found, checks=tuple(checks))
