"""What is asked of a file's signatures, and what LiteRT-LM would say, on files made by hand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ai_edge_litert import schema_py_generated as schema

from edgeverify.audits.model import Readings
from edgeverify.audits.signatures import audit_signatures, needed_masks
from edgeverify.core.case import Case
from edgeverify.core.errors import ArtifactError
from edgeverify.core.results import FAIL, NOT_APPLICABLE, PASS, SIGNATURES, Check
from edgeverify.litert.bundle.accepts import litert_lm_accepts

Shape = tuple[int, ...]
TYPES = {
    "int32": schema.TensorType.INT32,
    "float32": schema.TensorType.FLOAT32,
    "no name": 99,
}


class File:
    """As much of a ``ModelFile`` as its signatures are told by: name → dtype and shape."""

    def __init__(
        self,
        signatures: Mapping[str, tuple[Mapping[str, Any], Mapping[str, Any]]],
        layout: str | None = "transposed",
    ) -> None:
        self.signatures = signatures
        self.layout = layout
        self.path = Path("x.tflite")

    def signature(self, name: str) -> Any:
        inputs, outputs = self.signatures[name]
        names = [*inputs, *outputs]
        return SimpleNamespace(
            inputs={key: i for i, key in enumerate(inputs)},
            outputs={key: names.index(key, len(inputs)) for key in outputs},
        )

    def graph(self, name: str) -> Any:
        inputs, outputs = self.signatures[name]
        tensors = [*inputs.values(), *outputs.values()]
        return SimpleNamespace(
            raw=SimpleNamespace(tensors=[SimpleNamespace(type=TYPES[t[0]]) for t in tensors]),
            shape=lambda number: tensors[number][1],
        )

    def shape(self, name: str, key: str) -> Shape:
        return self.signatures[name][0][key][1]

    def kv_layout(self) -> str:
        if self.layout is None:
            raise ArtifactError(
                "its KV layout cannot be told", where=self.path, expected="", fix=""
            )
        return self.layout

    def kv_cache_len(self) -> int:
        return self.shape("decode", "kv_cache_k_0")[1 if self.kv_layout() == "default" else 2]


# Two blocks of other shapes: 2 and 1 KV heads of 3 and 5 elements; 7 rows; 11 tokens to know.
DECLARED = Readings(
    "HF config",
    {
        "layers": 2,
        "vocabulary": 11,
        "blocks.0.key/value heads": 2,
        "blocks.0.head_dim": 3,
        "blocks.0.window": 4,
        "blocks.1.key/value heads": 1,
        "blocks.1.head_dim": 5,
        "blocks.1.window": "none",
    },
)
CASE = Case("x", "tiny", "transposed", (4,), 7, ())


def caches(layout: str, batch: int = 1) -> dict[str, tuple[str, Shape]]:
    if layout == "default":
        return {
            "kv_cache_k_0": ("float32", (batch, 7, 2, 3)),
            "kv_cache_v_0": ("float32", (batch, 7, 2, 3)),
            "kv_cache_k_1": ("float32", (batch, 7, 1, 5)),
            "kv_cache_v_1": ("float32", (batch, 7, 1, 5)),
        }
    return {
        "kv_cache_k_0": ("float32", (batch, 2, 7, 3)),
        "kv_cache_v_0": ("float32", (batch, 2, 3, 7)),
        "kv_cache_k_1": ("float32", (batch, 1, 7, 5)),
        "kv_cache_v_1": ("float32", (batch, 1, 5, 7)),
    }


def right(
    layout: str = "transposed", *, masks: tuple[str, ...] = (), logits: bool = True, batch: int = 1
) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """The signatures of a right file."""
    made = {}
    for name, length in (("prefill_4", 4), ("decode", 1)):
        rows = batch if name == "decode" else 1
        inputs: dict[str, Any] = {
            "tokens": ("int32", (rows, length)),
            "input_pos": ("int32", (length,)),
            **dict.fromkeys(masks, ("float32", (1, 1, length, 7))),
            **caches(layout, rows),
        }
        outputs: dict[str, Any] = caches(layout, rows)
        if logits or name == "decode":
            outputs["logits"] = ("float32", (rows, length, 11))
        made[name] = (inputs, outputs)
    return made


def checks(file: Any, case: Case = CASE, kinds: tuple[str, ...] = ("global",)) -> tuple[Check, ...]:
    audit = audit_signatures(file, replace(case, mask_kinds=kinds), DECLARED)
    assert audit.name == SIGNATURES
    return audit.checks


def odd(*arguments: Any) -> list[Check]:
    return [check for check in checks(*arguments) if check.outcome == FAIL]


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("logits", [True, False])
@pytest.mark.parametrize("layout", ["default", "transposed"])
def test_what_a_case_asks_for(layout: str, logits: bool, batch: int) -> None:
    case = Case("x", "tiny", layout, (4,), 7, (), prefill_logits=logits, decode_batch=batch)
    found = checks(File(right(layout, logits=logits, batch=batch), layout), case)
    assert {c.outcome for c in found} == {PASS, NOT_APPLICABLE}
    # Two signatures, what they take and return, layout and length, LiteRT-LM.
    assert len(found) == 2 + 2 * 11 - (0 if logits else 1) + 2 + 1
    assert found[:2] == tuple(
        Check(name, "file", PASS, "signature", "signature") for name in ("prefill_4", "decode")
    )
    assert Check("prefill_4 tokens", "inputs", PASS, *["int32 (1, 4)"] * 2) in found
    assert Check("KV layout", "file", PASS, layout, layout) in found
    assert Check("KV cache length", "file", PASS, "7", "7") in found
    wrong = File(right(layout, logits=not logits, batch=batch + 1), layout)
    names = {c.item for c in odd(wrong, case)}
    assert names >= {"decode tokens", "decode logits", "decode kv_cache_v_1", "prefill_4 logits"}
    assert "decode input_pos" not in names


def test_signatures_too_few_and_too_many_are_named() -> None:
    made = right()
    made["prefill_9"] = made.pop("prefill_4")
    assert odd(File(made)) == [
        Check("prefill_4", "file", FAIL, "signature", ""),
        Check("prefill_9", "file", FAIL, "", "signature"),
    ]


def test_where_the_layout_cannot_be_told_it_is_a_fault() -> None:
    *_, layout, length, told = checks(File(right(), None))
    said = "untold: its KV layout cannot be told"
    assert layout == Check("KV layout", "file", FAIL, "transposed", said)
    assert length == Check("KV cache length", "file", FAIL, "7", "0")
    reason = "its KV layout cannot be told"
    assert told == Check("LiteRT-LM", "file", NOT_APPLICABLE, "", "cannot use", reason)


def test_one_mask_is_called_mask_and_several_by_their_kinds() -> None:
    case = Case("x", "tiny", "transposed", (4,), 7, (), mask_as_input=True)
    assert odd(File(right(masks=("mask",))), case, ("global",)) == []
    assert odd(File(right(masks=("mask_global", "mask_local"))), case, ("global", "local")) == []
    # The one mask of all layers may not be left out, whatever they need.
    assert [c.item for c in odd(File(right()), case, ("global",))] == [
        "prefill_4 mask",
        "decode mask",
    ]


def test_a_mask_that_no_layer_reads_may_be_dropped() -> None:
    kinds = ("global", "local", "other")
    case = Case("x", "tiny", "transposed", (4,), 7, (), mask_as_input=True)
    found = checks(File(right(masks=("mask_global", "mask_local"))), case, kinds)
    where = "float32 (1, 1, 4, 7)"
    dropped = Check(
        "prefill_4 mask_other", "inputs", NOT_APPLICABLE, where, "", "no layer reads it"
    )
    assert dropped in found
    assert [c for c in found if c.outcome == FAIL] == []
    assert [c.item for c in odd(File(right(masks=("mask_global",))), case, kinds)] == [
        "prefill_4 mask_local",
        "decode mask_local",
    ]


def test_a_prefill_without_logits_does_not_need_the_last_layer_s_mask() -> None:
    case = Case("x", "tiny", "transposed", (4,), 7, (), prefill_logits=False)
    assert needed_masks(DECLARED, case, "prefill_4") == {"mask_local"}
    assert needed_masks(DECLARED, case, "decode") == {"mask_local", "mask_global"}
    assert needed_masks(DECLARED, CASE, "prefill_4") == {"mask_local", "mask_global"}


def test_what_a_prefill_without_logits_does_not_need_may_be_dropped_there_alone() -> None:
    case = Case("x", "tiny", "transposed", (4,), 7, (), mask_as_input=True, prefill_logits=False)
    kinds = ("global", "local")
    made = right(masks=("mask_local",), logits=False)
    assert [c.item for c in odd(File(made), case, kinds)] == ["decode mask_global"]


def test_every_layer_but_the_last_is_asked_for_its_mask() -> None:
    said = Readings("", {"layers": 3, **{f"blocks.{i}.window": w for i, w in enumerate(
        (4, "none", 4))}})  # fmt: skip
    case = Case("x", "tiny", "transposed", (4,), 7, (), prefill_logits=False)
    assert needed_masks(said, case, "prefill_4") == {"mask_local", "mask_global"}


def test_a_type_that_has_no_name_is_told_by_its_number() -> None:
    made = right()
    made["decode"][0]["tokens"] = ("no name", (1, 1))
    assert odd(File(made)) == [Check("decode tokens", "inputs", FAIL, "int32 (1, 1)", "99 (1, 1)")]


ACCEPTED = "it reads a cache of 7 rows from the transposed layout"
TWO = "it needs a signature decode and one whose name begins with prefill"


@pytest.mark.parametrize(
    ("lost", "reason"),
    [
        ("tokens", "decode has no input tokens"),
        ("input_pos", "decode has no input input_pos"),
        ("kv_cache_k_0", "decode has no input kv_cache_k_0"),
        ("kv_cache_v_0", "decode has no input kv_cache_v_0"),
        ("tokens input_pos", "decode has no input tokens or input_pos"),
    ],
)
def test_litert_lm_needs_these_inputs(lost: str, reason: str) -> None:
    made = right()
    for name in lost.split():
        del made["decode"][0][name]
    assert said(made) == (False, reason)


def said(made: Any, layout: str | None = "transposed") -> tuple[bool, str]:
    file: Any = File(made, layout)
    return litert_lm_accepts(file)


def test_litert_lm_fills_one_mask_at_most_and_reads_the_logits() -> None:
    assert said(right()) == (True, ACCEPTED)
    assert said(right(masks=("mask",))) == (True, ACCEPTED)
    reason = (
        "it fills one input called mask, not mask_global and mask_local, and would answer wrongly"
    )
    assert said(right(masks=("mask_local", "mask_global"))) == (False, reason)
    made = right()
    del made["decode"][1]["logits"]
    assert said(made) == (False, "decode returns no logits")


def test_litert_lm_needs_a_prefill_and_a_decode() -> None:
    for name in ("prefill_4", "decode"):
        made = right()
        made["other"] = made.pop(name)
        assert said(made) == (False, TWO)


def test_litert_lm_reads_the_transposed_layout_alone() -> None:
    taken, why = said(right("default"), "default")
    assert not taken
    assert why == (
        "it would take the 2 KV heads for the cache's length, which it reads from the "
        "transposed layout (--kv-layout transposed)"
    )
    assert said(right(), None) == (False, "its KV layout cannot be told")


def test_the_verdict_of_litert_lm_is_a_note() -> None:
    for layout, verdict in (("transposed", "accepts"), ("default", "cannot use")):
        file: Any = File(right(layout), layout)
        audit = audit_signatures(file, CASE, DECLARED)
        _, why = litert_lm_accepts(file)
        assert audit.notes == (f"LiteRT-LM {verdict} the file: {why}",)
        told = Check("LiteRT-LM", "file", NOT_APPLICABLE, "", verdict, why)
        assert audit.checks[-1] == told
