"""Names, shapes and dtypes of a file's signatures, each changed and each named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

from edgeverify.audits.of_hf_config import declared
from edgeverify.audits.signatures import audit_signatures
from edgeverify.core.results import FAIL, PASS, AuditResult
from edgeverify.litert.bundle.accepts import litert_lm_accepts
from edgeverify.litert.flatbuffer import ModelFile
from edgeverify.litert.flatbuffer.instrument import write
from edgeverify_models import load

pytestmark = pytest.mark.slow


@pytest.fixture
def made(converted: Callable[..., Any]) -> Any:
    return converted("tinyllama", "transposed")


def audited(made: Any, file: ModelFile, **changes: Any) -> AuditResult:
    port = load(made.case.model)
    case = replace(made.case, **changes)
    return audit_signatures(file, case, declared(port.hf_configs["tiny"]))


def wrong(audit: AuditResult) -> list[tuple[str, str, str]]:
    return [(c.item, c.expected, c.found) for c in audit.checks if c.outcome == FAIL]


def rewritten(made: Any, target: Path, change: Callable[[Any], None]) -> ModelFile:
    file = ModelFile(made.path)
    change(file.model)
    write(file, target)
    return ModelFile(target)


@pytest.mark.parametrize(
    ("name", "layout", "choices"),
    [
        ("tinyllama", "default", {}),
        ("gemma2", "transposed", {}),
        ("gemma2", "default", {"mask_as_input": True}),
        ("gemma2", "default", {"prefill_logits": False}),
        ("tinyllama", "default", {"decode_batch": 2}),
    ],
)
def test_what_was_asked_for_passes(
    name: str, layout: str, choices: dict[str, Any], converted: Callable[..., Any]
) -> None:
    made = converted(name, layout, **choices)
    audit = audited(made, ModelFile(made.path))
    assert audit.outcome == PASS
    assert audit.odd == ()


def signature(model: Any, name: str) -> Any:
    return next(s for s in model.signatureDefs if s.signatureKey == name.encode())


def entry(model: Any, name: str, side: str, key: str) -> Any:
    return next(e for e in getattr(signature(model, name), side) if e.name == key.encode())


def tensor(model: Any, name: str, side: str, key: str) -> Any:
    found = signature(model, name)
    return model.subgraphs[found.subgraphIndex].tensors[entry(model, name, side, key).tensorIndex]


def test_a_renamed_output_is_named(made: Any, tmp_path: Path) -> None:
    def rename(model: Any) -> None:
        entry(model, "decode", "outputs", "logits").name = b"output"

    found = wrong(audited(made, rewritten(made, tmp_path / "x.tflite", rename)))
    assert found == [
        ("decode logits", "float32 (1, 1, 331)", ""),
        ("decode output", "", "float32 (1, 1, 331)"),
    ]


def test_another_dtype_is_named(made: Any, tmp_path: Path) -> None:
    def widen(model: Any) -> None:
        tensor(model, "prefill_4", "inputs", "tokens").type = schema.TensorType.INT64

    found = wrong(audited(made, rewritten(made, tmp_path / "x.tflite", widen)))
    assert found == [("prefill_4 tokens", "int32 (1, 4)", "int64 (1, 4)")]


def test_another_shape_is_named(made: Any, tmp_path: Path) -> None:
    def lengthen(model: Any) -> None:
        tensor(model, "prefill_11", "inputs", "input_pos").shape = np.array([12], np.int32)

    found = wrong(audited(made, rewritten(made, tmp_path / "x.tflite", lengthen)))
    assert found == [("prefill_11 input_pos", "int32 (11)", "int32 (12)")]


def test_a_missing_and_an_unknown_signature_are_named(made: Any) -> None:
    found = wrong(audited(made, ModelFile(made.path), prefill_lengths=(4, 12)))
    assert found == [("prefill_12", "signature", ""), ("prefill_11", "", "signature")]


def test_a_lost_cache_output_is_named(made: Any, tmp_path: Path) -> None:
    def drop(model: Any) -> None:
        found = signature(model, "decode")
        found.outputs = [e for e in found.outputs if e.name != b"kv_cache_v_2"]

    found = wrong(audited(made, rewritten(made, tmp_path / "x.tflite", drop)))
    assert found == [("decode kv_cache_v_2", "float32 (1, 2, 40, 40)", "")]


def test_another_cache_length_is_told_once_and_for_each_cache(made: Any) -> None:
    found = wrong(audited(made, ModelFile(made.path), kv_cache_len=41))
    assert ("KV cache length", "41", "40") in found
    assert ("decode kv_cache_k_0", "float32 (1, 2, 41, 40)", "float32 (1, 2, 40, 40)") in found


def test_another_layout_is_named(made: Any) -> None:
    assert ("KV layout", "default", "transposed") in wrong(
        audited(made, ModelFile(made.path), kv_layout="default")
    )


def test_prefill_logits_that_nobody_asked_for_are_named(made: Any) -> None:
    found = wrong(audited(made, ModelFile(made.path), prefill_logits=False))
    assert found == [
        (f"prefill_{n} logits", "", f"float32 (1, {n}, 331)") for n in made.case.prefill_lengths
    ]


def test_a_mask_that_layers_need_may_not_be_dropped(
    converted: Callable[..., Any], tmp_path: Path
) -> None:
    made = converted("gemma2", "default", mask_as_input=True)

    def drop(model: Any) -> None:
        found = signature(model, "decode")
        found.inputs = [e for e in found.inputs if e.name != b"mask_local"]

    found = wrong(audited(made, rewritten(made, tmp_path / "x.tflite", drop)))
    assert found == [("decode mask_local", "float32 (1, 1, 1, 40)", "")]


@pytest.mark.parametrize(
    ("name", "layout", "choices", "accepted", "reason"),
    [
        ("tinyllama", "transposed", {}, True, "it reads a cache of 40 rows"),
        ("tinyllama", "default", {}, False, "it would take the 2 KV heads for the cache's length"),
        (
            "gemma2",
            "default",
            {"mask_as_input": True},
            False,
            "it fills one input called mask, not",
        ),
    ],
)
def test_what_litert_lm_would_say_is_a_fact_and_no_failure(
    name: str,
    layout: str,
    choices: dict[str, bool],
    accepted: bool,
    reason: str,
    converted: Callable[..., Any],
) -> None:
    made = converted(name, layout, **choices)
    file = ModelFile(made.path)
    said, why = litert_lm_accepts(file)
    assert said == accepted
    assert why.startswith(reason)
    audit = audited(made, file)
    assert audit.outcome == PASS
    assert audit.notes == (f"LiteRT-LM {'accepts' if accepted else 'cannot use'} the file: {why}",)
