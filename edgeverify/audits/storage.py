"""Checks which weights stayed float32 and whether tied tables have equal values."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping

from edgeverify.audits.of_file import cap_is_folded
from edgeverify.audits.promises import Promise, Promises
from edgeverify.audits.quantized_weights import describe
from edgeverify.audits.weight_map import Places
from edgeverify.core.results import FAIL, UNCHECKED, Check
from edgeverify.litert.flatbuffer import ModelFile
from edgeverify.litert.flatbuffer.graph import Op
from edgeverify.litert.flatbuffer.quantization import read, stored
from edgeverify.litert.flatbuffer.weights import EMBEDDING, HEAD, Weights

FLOAT32 = "float32"
_COMPUTE = ("FULLY_CONNECTED", "EMBEDDING_LOOKUP", "GATHER")
_TAKEN = {True: "integers taken as they are", False: "integers dequantized first"}
_BLOCK = re.compile(r"^transformer_blocks\.\d+\.")


def users(weights: Weights, tensor: int) -> Iterator[Op]:
    """Yields the operators that compute with a constant, behind its DEQUANTIZE if there is one."""
    for op in weights.graph.consumers.get(tensor, ()):
        if op.name == "DEQUANTIZE":
            yield from users(weights, op.outputs[0])
        elif op.name in _COMPUTE:
            yield op


def promise_of(weights: Weights, tensor: int, promises: Promises | None) -> Promise | None:
    """Returns what a recipe promises for a constant; None without a recipe.

    Operators that share a constant must have the same promise; the quantizer refuses others.
    """
    if promises is None:
        return None
    made = [promises.of(weights.graph, op) for op in users(weights, tensor)]
    return made[0] if made else None


def idle_rules(file: ModelFile, promises: Promises) -> Iterator[Check]:
    """Yields a failure for each rule of the recipe that matches no operator of the file."""
    reason = "its regular expression fits the name of no operator, so it changes nothing"
    for rule in promises.idle(file.graph(name) for name in file.signatures):
        yield Check(rule, "recipe", FAIL, reason=reason)


def kept_in_float(
    file: ModelFile, found: Mapping[str, Weights], promises: Promises | None
) -> Iterator[Check]:
    """Reports weights of a quantized file that are float32, unless this is intended.

    It is intended if a rule of the recipe says so, or if the same weight of every block stays
    float32. If only a few blocks' weights do, and no rule names them, a regular expression missed
    them.
    """
    for signature, weights in found.items():
        kept = {
            name: _kept(file, weights, tensor)
            for name, tensor in weights.tensors.items()
            if name.endswith(".weight") and any(users(weights, tensor))
        }
        if set(kept.values()) <= {FLOAT32}:
            if promises is not None:
                yield from _untouched(weights, kept, signature, promises)
            continue
        others = {
            role: Counter(kind for name, kind in kept.items() if _role(name) == role)
            for role in {_role(name) for name in kept}
        }
        for name, kind in kept.items():
            if kind != FLOAT32:
                continue
            promise = promise_of(weights, weights.tensors[name], promises)
            if promise is not None and promise.dtype != FLOAT32:
                where = f"file, {name}, {signature}"
                yield Check(name, where, FAIL, str(promise), FLOAT32, "was left in float32")
            elif len(others[_role(name)]) > 1 and not (promise and promise.said):
                yield _missed(name, signature, others[_role(name)], known=promise is not None)


def _untouched(
    weights: Weights, kept: Mapping[str, str], signature: str, promises: Promises
) -> Iterator[Check]:
    """Reports a recipe that quantized nothing, unless its rules say so for every weight."""
    asked = [promise_of(weights, weights.tensors[name], promises) for name in kept]
    if all(p is not None and p.said and p.dtype == FLOAT32 for p in asked):
        return
    reason = "the recipe has quantized nothing: does a rule's operation name an operator?"
    yield Check("weights", f"file, {signature}", FAIL, "quantized weights", FLOAT32, reason)


def taken_otherwise(
    file: ModelFile, found: Mapping[str, Weights], promises: Promises
) -> Iterator[Check]:
    """Reports operators that take the integers where the recipe dequantizes, or the reverse.

    A dynamic file and a weight-only file have the same weights. They differ in the DEQUANTIZE
    between the weight and its operator, which decides whether activations are rounded, too.
    """
    for signature, weights in found.items():
        for name, tensor in weights.tensors.items():
            if read(file, weights.graph, tensor) is None:
                continue
            for op in users(weights, tensor):
                promise, as_stored = promises.of(weights.graph, op), tensor in op.inputs
                if "int" in promise.dtype and promise.in_integers != as_stored:
                    expected, taken = (_TAKEN[way] for way in (promise.in_integers, as_stored))
                    yield Check(name, f"file, {name}, {signature}", FAIL, expected, taken)


def _missed(name: str, signature: str, kinds: Counter[str], *, known: bool) -> Check:
    usual = max((k for k in kinds if k != FLOAT32), key=lambda kind: kinds[kind])
    reason = f"was left in float32, where {kinds[usual]} blocks have {usual}"
    reason += ", and no rule of the recipe says so" if known else ": whether it was meant is " \
        "not known without the recipe"  # fmt: skip
    outcome = FAIL if known else UNCHECKED
    return Check(name, f"file, {name}, {signature}", outcome, usual, FLOAT32, reason)


def _kept(file: ModelFile, weights: Weights, tensor: int) -> str:
    quantized = read(file, weights.graph, tensor)
    return FLOAT32 if quantized is None else describe(quantized)


def _role(name: str) -> str:
    return _BLOCK.sub("", name)


def tied_alike(file: ModelFile, found: Mapping[str, Weights], planned: Places) -> Iterator[Check]:
    """Checks that a table used both as embedding and as head has the same numbers in both places.

    If the two are stored in different ways, as a recipe may request, or the head also contains a
    factor, each is only checked separately.
    """
    if HEAD not in planned or planned[HEAD] != planned.get(EMBEDDING):
        return
    for signature, weights in found.items():
        graph = weights.graph
        table, head = weights.tensors.get(EMBEDDING), weights.tensors.get(HEAD)
        if table is None or head is None or table == head or cap_is_folded(weights):
            continue
        first, second = read(file, graph, table), read(file, graph, head)
        if first is None or second is None or describe(first) != describe(second):
            continue
        if (first.scales == second.scales).all() and (
            stored(file, graph, table) == stored(file, graph, head)
        ).all():
            continue
        yield Check(
            planned[HEAD][0].tensor,
            f"file, {signature}",
            FAIL,
            "one table for embedding and head",
            "two that differ",
            "they are tied, and were quantized from different values",
        )
