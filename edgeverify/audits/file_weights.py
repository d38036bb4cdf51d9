"""The audit of a converted file's weights: every constant, bit by bit, and those that are none.

A float32 file holds the checkpoint's own bits, with two exceptions that are made in float32 and so
can be made again: where the norm multiplies by ``1 + weight`` the file has the sum, and where the
logits are soft-capped the LM head holds the division by the cap.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from edgeverify.audits.constants import Weights
from edgeverify.audits.converted import cap_is_folded, is_mask, is_rope, values
from edgeverify.audits.declared import NONE
from edgeverify.audits.model import WEIGHTS, AuditResult, Check, Readings
from edgeverify.audits.places import block_of, places
from edgeverify.audits.weights import Audit, Fold, State
from edgeverify.flatbuffer import ModelFile
from edgeverify.report.model import FAIL, UNCHECKED

# Blocks that hold q, k and v as three constants.
_APART = re.compile(r"^transformer_blocks\.(\d+)\.atten_func\.[qkv]_projection\.")


def audit_file(
    file: ModelFile, found: Mapping[str, Weights], config: Any, state: State, declared: Readings
) -> AuditResult:
    """Holds the constants of a .tflite against the checkpoint.

    Args:
        file: the .tflite.
        found: signature → its weights.
        config: the re-authored ``ModelConfig``.
        state: the checkpoint, HF names → float32 tensors.
        declared: of the HF config: which norms add 1, which factor embeddings have.
    """
    names = {name for weights in found.values() for name in weights.tensors}
    apart = {int(match.group(1)) for name in names if (match := _APART.match(name))}
    planned = places({name: tuple(t.shape) for name, t in state.items()}, config, apart)
    audit = Audit(state, "file")
    compared: set[tuple[str, int]] = set()
    claimed: set[int] = set()
    for weights in found.values():
        for name, tensor in weights.tensors.items():
            buffer = weights.graph.raw.tensors[tensor].buffer
            claimed.add(buffer)
            if (name, buffer) in compared:
                continue
            compared.add((name, buffer))
            held = values(file, weights.graph, tensor)
            if held is None:
                reason = "is computed from constants"
                audit.checks.append(Check(name, "file", UNCHECKED, reason=reason))
            elif name not in planned:
                reason = "belongs to no tensor of the checkpoint"
                audit.checks.append(Check(name, "file", FAIL, "", _about(held), reason))
            else:
                fold, note = _fold(name, weights, declared)
                audit.compare(name, held, planned[name], fold, note)
    audit.checks += _missing(planned, found)
    kinds = _others(file, found.values(), claimed, audit)
    told = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    note = f"the file's float constants: {len(claimed)} of weights" + (f", {told}" if told else "")
    return AuditResult(WEIGHTS, tuple(audit.checks), (note,))


def _fold(name: str, weights: Weights, declared: Readings) -> tuple[Fold | None, str]:
    """What the converter has done to a weight, and how that is said."""
    one = np.float32(1.0)
    if "norm" in name and name.endswith(".weight"):
        block = block_of(name)
        role = "key norm" if "key_norm" in name else "query norm" if "query" in name else ""
        field = f"{role or 'attention norm'} factor"
        key = "final norm factor" if block is None else f"blocks.{block}.{field}"
        if declared.values.get(key) == "1 + weight":
            return (lambda w: one + w), "as 1 + weight"
    cap = declared.values["final softcap"]
    if name.startswith("lm_head.") and cap != NONE and cap_is_folded(weights):
        inverse = one / np.float32(cap)
        return (lambda w: w * inverse), "divided by the final softcap"
    return None, ""


def _missing(planned: Mapping[str, Any], found: Mapping[str, Weights]) -> list[Check]:
    """Weights that a signature has no constant for. One that returns no logits needs less."""
    checks = []
    for name, spans in planned.items():
        lacking = [s for s, w in found.items() if "logits" in w.signature.outputs
                   and name not in w.tensors]  # fmt: skip
        if not lacking:
            continue
        lost = _lost(name, found[lacking[0]])
        why = f"its place was not found: {lost}" if lost else "has no constant"
        tensors = ", ".join(dict.fromkeys(span.tensor for span in spans))
        where = f"file, {name}, {', '.join(lacking)}"
        checks.append(Check(tensors, where, UNCHECKED if lost else FAIL, tensors, "", why))
    return checks


def _lost(name: str, weights: Weights) -> str:
    """Why a weight's constant may be there and not have been found; "" if it cannot."""
    if weights.located.missing:
        return next(iter(weights.located.missing.values()))
    untold = block_of(name) in weights.untold
    return "its block has operations that are not known here" if untold else ""


def _others(
    file: ModelFile, found: Iterable[Weights], claimed: set[int], audit: Audit
) -> Counter[str]:
    """Names what kind each other float constant is; what is none of them is a leftover."""
    kinds: Counter[str] = Counter()
    seen = set(claimed)
    for weights in found:
        for tensor, why in weights.unknown.items():
            buffer = weights.graph.raw.tensors[tensor].buffer
            table = values(file, weights.graph, tensor)
            if buffer in seen or table is None:
                continue
            seen.add(buffer)
            kind = _kind(table)
            kinds[kind] += 1
            if kind == "unexplained":
                name = weights.graph.name(tensor)[-80:]
                reason = f"belongs to no tensor of the checkpoint; {why}"
                audit.checks.append(
                    Check(f"constant {name!r}", "file", UNCHECKED, "", _about(table), reason)
                )
    return kinds


def _kind(table: np.ndarray) -> str:
    if is_mask(table):
        return "of masks"
    if is_rope(table):
        return "of RoPE"
    return "of one value throughout" if (table == table.flat[0]).all() else "unexplained"


def _about(values_: np.ndarray) -> str:
    return f"float32 ({', '.join(map(str, values_.shape))})"
