"""Audits the signatures: compares a file's names, shapes and dtypes with the case."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ai_edge_litert import schema_py_generated as schema

from edgeverify.audits.masks import NONE
from edgeverify.audits.model import Readings
from edgeverify.core.case import Case
from edgeverify.core.errors import ArtifactError
from edgeverify.core.results import FAIL, NOT_APPLICABLE, PASS, SIGNATURES, AuditResult, Check
from edgeverify.litert.bundle.accepts import litert_lm_accepts
from edgeverify.litert.flatbuffer import ModelFile

_DTYPES = {v: k.lower() for k, v in vars(schema.TensorType).items() if isinstance(v, int)}
Tensor = tuple[str, tuple[int, ...]]  # dtype, shape


def audit_signatures(
    file: ModelFile,
    case: Case,
    declared: Readings,
    for_engine: bool = False,
) -> AuditResult:
    """Compares a file's signatures with those that the case requests.

    Args:
        file: the .tflite.
        case: the prefill lengths, the cache's length and layout, masks, prefill logits.
        declared: readings of the HF config: heads, head_dim, vocabulary.
        for_engine: whether the file has to run in LiteRT-LM. If so, a refusal is a failure;
            otherwise it is only reported.
    """
    checks = [
        _check("file", name, "signature", "signature" if name in file.signatures else "")
        for name in case.signatures
    ]
    checks += [_check("file", name, "", "signature") for name in file.signatures
               if name not in case.signatures]  # fmt: skip
    for name, length in case.signatures.items():
        if name in file.signatures:
            wanted = _wanted(case, declared, name, length)
            for side, tensors in zip(("inputs", "outputs"), wanted, strict=True):
                checks += _side(file, name, side, tensors, needed_masks(declared, case, name))
    try:
        layout, rows = file.kv_layout(), file.kv_cache_len()
    except ArtifactError as error:
        layout, rows = f"untold: {error.what}", 0
    checks.append(_check("file", "KV layout", case.kv_layout, layout))
    checks.append(_check("file", "KV cache length", str(case.kv_cache_len), str(rows)))
    accepted, reason = litert_lm_accepts(file)
    verdict = "accepts" if accepted else "cannot use"
    if for_engine:
        outcome = PASS if accepted else FAIL
        checks.append(Check("LiteRT-LM", "file", outcome, "accepts", verdict, reason))
    else:
        checks.append(Check("LiteRT-LM", "file", NOT_APPLICABLE, found=verdict, reason=reason))
    return AuditResult(SIGNATURES, tuple(checks), (f"LiteRT-LM {verdict} the file: {reason}",))


def _check(where: str, item: str, expected: str, found: str) -> Check:
    return Check(item, where, PASS if expected == found else FAIL, expected, found)


def _wanted(
    case: Case, declared: Readings, name: str, length: int
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Returns the expected inputs and outputs of a signature: name → dtype and shape."""
    batch = case.decode_batch if name == "decode" else 1
    inputs: dict[str, Tensor] = {
        "tokens": ("int32", (batch, length)),
        "input_pos": ("int32", (length,)),
    }
    if case.mask_as_input:
        kinds = case.mask_kinds
        names = ["mask"] if len(kinds) == 1 else [f"mask_{kind}" for kind in kinds]
        inputs |= dict.fromkeys(names, ("float32", (1, 1, length, case.kv_cache_len)))
    caches: dict[str, Tensor] = {}
    for block in range(declared.values["layers"]):
        heads = declared.values[f"blocks.{block}.key/value heads"]
        dim = declared.values[f"blocks.{block}.head_dim"]
        rows = case.kv_cache_len
        if case.kv_layout == "default":
            k = v = (batch, rows, heads, dim)
        else:
            k, v = (batch, heads, rows, dim), (batch, heads, dim, rows)
        caches[f"kv_cache_k_{block}"] = ("float32", k)
        caches[f"kv_cache_v_{block}"] = ("float32", v)
    outputs = dict(caches)
    if name == "decode" or case.prefill_logits:
        outputs["logits"] = ("float32", (batch, length, declared.values["vocabulary"]))
    return {**inputs, **caches}, outputs


def _side(
    file: ModelFile, name: str, side: str, wanted: Mapping[str, Tensor], needed: set[str]
) -> Iterator[Check]:
    graph = file.graph(name)
    given: Mapping[str, int] = getattr(file.signature(name), side)
    found = {key: _tensor(graph.raw.tensors[tensor], graph.shape(tensor))
             for key, tensor in given.items()}  # fmt: skip
    for key in dict.fromkeys([*wanted, *found]):
        expected, seen = _text(wanted.get(key)), _text(found.get(key))
        # The converter drops a mask that no layer reads.
        if not seen and key.startswith("mask_") and key not in needed:
            yield Check(f"{name} {key}", side, NOT_APPLICABLE, expected, "", "no layer reads it")
        else:
            yield _check(side, f"{name} {key}", expected, seen)


def needed_masks(declared: Readings, case: Case, signature: str) -> set[str]:
    """Returns the masks, of several, that some layer of a signature must read.

    If a prefill returns no logits, nothing needs the output of the last layer's attention.
    """
    layers = declared.values["layers"]
    if signature != "decode" and not case.prefill_logits:
        layers -= 1
    windows = [declared.values[f"blocks.{i}.window"] for i in range(layers)]
    return {"mask_global" if window == NONE else "mask_local" for window in windows}


def _tensor(raw: Any, shape: tuple[int, ...]) -> Tensor:
    return _DTYPES.get(raw.type, str(raw.type)), shape


def _text(tensor: Tensor | None) -> str:
    return "" if tensor is None else f"{tensor[0]} ({', '.join(map(str, tensor[1]))})"
