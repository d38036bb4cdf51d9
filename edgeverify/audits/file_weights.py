"""Audits a converted file's weights: compares every constant bit by bit, and lists the rest.

A float32 file contains the checkpoint's own bits, and so does a quantized file in the tensors that
it leaves in float32. There are two exceptions. Both are computed in float32, so the audit can
compute them again: where the norm multiplies by ``1 + weight`` the file contains the sum, and where
the logits are soft-capped the LM head contains the weights divided by the cap.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from edgeverify.audits.model import Readings
from edgeverify.audits.of_file import cap_is_folded, is_mask, is_rope, values
from edgeverify.audits.of_hf_config import NONE
from edgeverify.audits.promises import Promises
from edgeverify.audits.quantized_weights import Weight, check_weight, describe
from edgeverify.audits.storage import (
    idle_rules,
    kept_in_float,
    promise_of,
    taken_otherwise,
    tied_alike,
)
from edgeverify.audits.weight_map import Span, block_of, places
from edgeverify.audits.weights import Audit, Fold, State
from edgeverify.core.results import FAIL, PASS, UNCHECKED, WEIGHTS, AuditResult, Check
from edgeverify.core.store.mapped import forget
from edgeverify.litert.flatbuffer import ModelFile
from edgeverify.litert.flatbuffer.quantization import Quantized, read
from edgeverify.litert.flatbuffer.weights import Weights

# Blocks that store q, k and v as three constants.
_APART = re.compile(r"^transformer_blocks\.(\d+)\.atten_func\.[qkv]_projection\.")


def blocks_apart(found: Mapping[str, Weights]) -> set[int]:
    """The blocks of a file that hold q, k and v as three matrices, by the weights found in it."""
    names = {name for weights in found.values() for name in weights.tensors}
    return {int(match.group(1)) for name in names if (match := _APART.match(name))}


def audit_file(
    file: ModelFile,
    found: Mapping[str, Weights],
    config: Any,
    state: State,
    declared: Readings,
    promises: Promises | None = None,
) -> AuditResult:
    """Compares the constants of a .tflite with the checkpoint.

    Args:
        file: the .tflite.
        found: signature → its weights.
        config: the re-authored ``ModelConfig``.
        state: the checkpoint, HF names → float32 tensors.
        declared: readings of the HF config: which norms add 1, which factor embeddings have.
        promises: promises of the recipe that the file was quantized with, if it is known.
    """
    shapes = {name: tuple(t.shape) for name, t in state.items()}
    planned = places(shapes, config, blocks_apart(found))
    audit = Audit(state, "file")
    if promises is not None:
        audit.checks += idle_rules(file, promises)
    compared: set[tuple[object, ...]] = set()
    claimed: set[int] = set()
    for signature, weights in found.items():
        for name, tensor in weights.tensors.items():
            buffer = weights.graph.raw.tensors[tensor].buffer
            claimed.add(buffer)
            key = (name, buffer, *_parameters(read(file, weights.graph, tensor)))
            if key in compared:
                continue
            told = f", {signature}" if any(name == other[0] for other in compared) else ""
            compared.add(key)
            first = len(audit.checks)
            _check(audit, file, weights, name, planned.get(name), declared, promises)
            file.forget(buffer)
            forget(*(state[span.tensor] for span in planned.get(name) or ()))
            audit.checks[first:] = [replace(c, where=c.where + told) for c in audit.checks[first:]]
    audit.checks += kept_in_float(file, found, promises)
    if promises is not None:
        audit.checks += taken_otherwise(file, found, promises)
    audit.checks += tied_alike(file, found, planned)
    kinds, unexplained = _others(file, found.values(), claimed)
    for name, missing in _missing(planned, found):
        weights = next(iter(found.values()))
        fold, _ = fold_of(name, weights, declared)
        audit.checks.append(
            _recognised(missing, _expected(planned[name], state, fold), unexplained)
        )
    held = {check.reason for check in audit.checks}
    audit.checks += [check for check, _ in unexplained if _held_by(check) not in held]
    others = "".join(f", {count} {kind}" for kind, count in kinds.items())
    note = f"the file's constants: {_kept_as(file, found)}{others}"
    return AuditResult(WEIGHTS, tuple(audit.checks), (note,))


def _check(
    audit: Audit,
    file: ModelFile,
    weights: Weights,
    name: str,
    spans: tuple[Span, ...] | None,
    declared: Readings,
    promises: Promises | None,
) -> None:
    """Adds the checks of one constant."""
    tensor = weights.tensors[name]
    fold, note = fold_of(name, weights, declared)
    quantized = read(file, weights.graph, tensor)
    held = values(file, weights.graph, tensor)
    if spans is None:
        about = describe(quantized) if quantized else _about(held) if held is not None else ""
        reason = "belongs to no tensor of the checkpoint"
        audit.checks.append(Check(name, "file", FAIL, "", about, reason))
    elif quantized is not None:
        weight = _weight(name, tensor, quantized, spans, audit.state, fold)
        promise = promise_of(weights, tensor, promises)
        audit.checks += check_weight(file, weights.graph, weight, promise)
    elif held is None:
        audit.checks.append(Check(name, "file", UNCHECKED, reason="is computed from constants"))
    else:
        audit.compare(name, held, spans, fold, note)


def _parameters(quantized: Quantized | None) -> tuple[object, ...]:
    """Returns what decides a constant's meaning besides its bytes; signatures differ in it."""
    if quantized is None:
        return ()
    tables = quantized.scales.tobytes(), quantized.zero_points.tobytes()
    return quantized.dtype, quantized.granularity, quantized.axis, *tables


def _weight(
    name: str,
    tensor: int,
    quantized: Quantized,
    spans: tuple[Span, ...],
    state: State,
    fold: Fold | None,
) -> Weight:
    """Returns a quantized weight together with the values that belong there."""
    parts, row = [], 0
    for span in spans:
        length = len(_piece(span, state))
        parts.append((span.tensor, row, row + length))
        row += length
    tensors = " + ".join(dict.fromkeys(span.tensor for span in spans))
    return Weight(
        tensors,
        f"file, {name}",
        tensor,
        quantized,
        _expected(spans, state, fold),
        tuple(parts),
    )


def _piece(span: Span, state: State) -> np.ndarray:
    source = state[span.tensor].numpy()
    return source if span.source is None else source[slice(*span.source)]


def _expected(spans: tuple[Span, ...], state: State, fold: Fold | None) -> np.ndarray:
    """Returns the values that belong in a constant."""
    pieces = [_piece(span, state) for span in spans]
    whole = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
    return whole if fold is None else fold(whole)


def fold_of(name: str, weights: Weights, declared: Readings) -> tuple[Fold | None, str]:
    """Returns what the converter did to a weight, and the words for it."""
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


def _missing(
    planned: Mapping[str, Any], found: Mapping[str, Weights]
) -> Iterator[tuple[str, Check]]:
    """Yields the weights for which a signature has no constant in their place: name and check.

    A signature that returns no logits needs fewer weights and is not checked.
    """
    for name, spans in planned.items():
        lacking = [s for s, w in found.items() if "logits" in w.signature.outputs
                   and name not in w.tensors]  # fmt: skip
        if not lacking:
            continue
        lost = _lost(name, found[lacking[0]])
        why = f"its place was not found: {lost}" if lost else "has no constant"
        tensors = ", ".join(dict.fromkeys(span.tensor for span in spans))
        where = f"file, {name}, {', '.join(lacking)}"
        yield name, Check(tensors, where, UNCHECKED if lost else FAIL, tensors, "", why)


def _recognised(
    missing: Check, expected: np.ndarray, unexplained: Sequence[tuple[Check, np.ndarray]]
) -> Check:
    """Looks for a weight among the constants of no known place.

    There it is where an operation is written out: a norm by hand, or a product with the transpose.
    A constant with its very values is the weight. One of its size may be.

    Args:
        missing: the check of the weight that was not found.
        expected: its values.
        unexplained: the constants of no known place; one may hold several weights that are equal.
    """
    forms = {form.tobytes() for form in (expected, expected.T)}
    for other, table in unexplained:
        if table.size == expected.size and table.tobytes() in forms:
            return Check(missing.item, missing.where, PASS, reason=_held_by(other))
    if any(table.size == expected.size for _, table in unexplained):
        reason = "its place was not found, and constants of its size have no known place"
        return Check(missing.item, missing.where, UNCHECKED, reason=reason)
    return missing


def _held_by(constant: Check) -> str:
    return f"held by {constant.item}"


def _lost(name: str, weights: Weights) -> str:
    """Returns why a weight's constant may exist without being found; "" if it cannot exist."""
    if weights.located.missing:
        return next(iter(weights.located.missing.values()))
    untold = block_of(name) in weights.untold
    return "its block has operations that are not known here" if untold else ""


def _others(
    file: ModelFile, found: Iterable[Weights], claimed: set[int]
) -> tuple[Counter[str], list[tuple[Check, np.ndarray]]]:
    """Counts the kinds of all other float constants.

    Returns:
        The counts, and the constants of no known kind, which are leftovers: checks and values.
    """
    kinds: Counter[str] = Counter()
    unexplained = []
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
                check = Check(f"constant {name!r}", "file", UNCHECKED, "", _about(table), reason)
                unexplained.append((check, table))
    return kinds, unexplained


def _kept_as(file: ModelFile, found: Mapping[str, Weights]) -> str:
    """Returns how many weights are stored in which way: ``21 int8 by channel, 17 float32``."""
    kept: dict[int, str] = {}
    for weights in found.values():
        for tensor in weights.tensors.values():
            quantized = read(file, weights.graph, tensor)
            buffer = weights.graph.raw.tensors[tensor].buffer
            kept[buffer] = describe(quantized) if quantized else "float32"
    return ", ".join(f"{count} {kind}" for kind, count in Counter(kept.values()).most_common())


def _kind(table: np.ndarray) -> str:
    if is_mask(table):
        return "of masks"
    if is_rope(table):
        return "of RoPE"
    return "of one value throughout" if (table == table.flat[0]).all() else "unexplained"


def _about(values_: np.ndarray) -> str:
    return f"float32 ({', '.join(map(str, values_.shape))})"
