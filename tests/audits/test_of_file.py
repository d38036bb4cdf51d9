"""What a file's graph and constants say of the config, on graphs made by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edgeverify.audits.of_file import attributes, cap_is_folded, is_mask, is_rope, of_file, values
from edgeverify.litert.flatbuffer import TapRef
from tests.audits.graphs import WIDE, WIDTH, Decoder, decoder, flex

LOGITS = (1, 1, 9)


def read(made: Decoder, base: float | None = None, layout: str = "default") -> dict[str, Any]:
    file = made.sketch.file(made.signature)
    file.kv_layout = lambda: layout
    readings = of_file(file, made.weights(), base)
    assert (readings.where, readings.unread) == ("file", {})
    return readings.values


def test_what_shapes_tell() -> None:
    made = decoder(1)
    made.found.taps["blocks.0.attn.q"] = TapRef(0, (1, 1, 2, 2), (0, 1, 2, 3))
    found = read(made)
    expected = {
        "layers": 1, "vocabulary": 9, "width": 4, "head bias": "no", "final softcap": "none",
        "blocks.0.heads": 2, "blocks.0.key/value heads": 1, "blocks.0.head_dim": 2,
        "blocks.0.feed-forward width": 4, "blocks.0.gated": "yes", "blocks.0.qkv bias": "no",
        "blocks.0.attention output bias": "no", "blocks.0.feed-forward bias": "no",
    }  # fmt: skip
    assert {key: found.get(key) for key in expected} == expected
    assert {type(found[key]) for key in expected} == {int, str}
    assert "embedding scale" not in found
    assert not [key for key in found if key.endswith(("window", "rotary base"))]
    assert read(made, layout="transposed")["blocks.0.key/value heads"] == 8


@pytest.mark.parametrize("options", [{}, {"apart": "three"}])
def test_biases_are_there_or_not(options: dict[str, object]) -> None:
    fields = ["head bias", *(f"blocks.0.{part} bias" for part in (
        "qkv", "attention output", "feed-forward"))]  # fmt: skip
    for bias, told in ((True, "yes"), (False, "no")):
        found = read(decoder(1, bias=bias, **options))
        assert [found[name] for name in fields] == [told] * 4


def test_what_was_not_found_is_not_read() -> None:
    made = decoder(1, inner="two gates")
    for tap in ("attn.q", "attn.k", "attn.v"):
        del made.found.taps[f"blocks.0.{tap}"]
    found = read(made)
    assert found["blocks.0.feed-forward width"] == WIDTH
    assert not {"blocks.0.heads", "blocks.0.gated", "blocks.0.qkv bias"} & found.keys()
    made = decoder(1, inner="plain")
    assert read(made)["blocks.0.gated"] == "no"
    del made.found.taps["blocks.0.ff.out"]
    assert not {"blocks.0.gated", "blocks.0.feed-forward width"} & read(made).keys()


def test_gate_and_up_in_one_matrix_are_twice_the_width() -> None:
    made = decoder(1, inner="plain")
    weight = made.sketch.tensors[made.expected["transformer_blocks.0.ff.w1.weight"]]
    weight.shape = np.array([2 * WIDTH, WIDTH])
    assert read(made)["blocks.0.gated"] == "yes"


def test_norms_are_read_where_they_are_composites() -> None:
    made = decoder(1)
    found = read(made)
    assert (found["final norm"], found["final norm eps"]) == ("RMSNorm", 0.25)
    assert (found["blocks.0.attention norm"], found["blocks.0.query norm"]) == ("RMSNorm", "none")
    norms = {key.removeprefix("blocks.0.") for key in found if key.endswith("norm")}
    assert norms == {"final norm", "attention norm", "attention output norm", "feed-forward norm",
                     "feed-forward output norm", "query norm", "key norm"}  # fmt: skip
    assert "blocks.0.query norm eps" not in found
    for composite in made.sketch.composites("norm"):
        composite.name = b"some_norm"
    assert not [key for key in read(made) if "norm" in key]


def test_a_norm_without_an_epsilon_is_unread_in_it_alone() -> None:
    made = decoder(1)
    made.sketch.composites("norm")[-1].compositeAttributes = None
    file = made.sketch.file(made.signature)
    file.kv_layout = lambda: "default"
    found = of_file(file, made.weights(), None)
    assert found.unread == {"final norm eps": "odml.rms_norm has no epsilon"}
    assert found.values["final norm"] == "RMSNorm"
    assert found.values["blocks.0.attention norm eps"] == 0.25


@pytest.mark.parametrize(
    ("stored", "scale", "cap"),
    [
        (None, None, "none"),
        ({}, None, "none"),
        ({"scale": 0.5}, 0.5, "none"),
        ({"scale": 0.5, "logit_cap": 30.0}, 0.5, 30.0),
    ],
)
def test_scale_and_cap_are_the_attention_s(stored: Any, scale: Any, cap: Any) -> None:
    made = decoder(2)
    first, second = made.sketch.composites("attention")
    first.compositeAttributes = flex(scale=2.0, logit_cap=1.0)
    second.compositeAttributes = None if stored is None else flex(**stored)
    found = read(made)
    assert (found["blocks.0.query scale"], found["blocks.0.attention softcap"]) == (2.0, 1.0)
    assert (found.get("blocks.1.query scale"), found["blocks.1.attention softcap"]) == (scale, cap)


@pytest.mark.parametrize("reshaped", [False, True])
@pytest.mark.parametrize("first", [False, True])
def test_a_final_softcap_is_the_factor_of_a_tanh(first: bool, reshaped: bool) -> None:
    made = decoder(1)
    op = made.sketch.op
    cap = made.sketch.constant(np.float32(30.0).reshape(1, 1) if reshaped else np.float32(30.0))
    tanh = op("TANH", made.logits, shape=LOGITS)
    made.logits = op("MUL", *((cap, tanh) if first else (tanh, cap)), shape=LOGITS)
    if reshaped:
        for _ in range(2):
            made.logits = op("RESHAPE", made.logits, shape=LOGITS)
    assert read(made)["final softcap"] == 30.0


def test_another_product_is_no_softcap() -> None:
    for other in ("LOGISTIC", ""):
        made = decoder(1)
        op, cap = made.sketch.op, made.sketch.constant(np.float32(30.0))
        inner = op(other, made.logits, shape=LOGITS) if other else made.sketch.tensor(1, 1, 9)
        made.logits = op("MUL", inner, cap, shape=LOGITS)
        assert read(made)["final softcap"] == "none"
    made = decoder(1)
    tanh = made.sketch.op("TANH", made.logits, shape=LOGITS)
    for factor in (made.sketch.weight(9), made.sketch.tensor(1)):
        made.logits = made.sketch.op("MUL", tanh, factor, shape=LOGITS)
        assert read(made)["final softcap"] == "none"
    made.logits = tanh
    assert read(made)["final softcap"] == "none"


@pytest.mark.parametrize(
    ("between", "folded"),
    [
        ((), True),
        (("ADD",), True),
        (("RESHAPE", "RESHAPE"), True),
        (("MUL",), False),
        (("DIV", "RESHAPE"), False),
    ],
)
def test_a_division_by_the_cap_is_folded_where_none_is_left(
    between: tuple[str, ...], folded: bool
) -> None:
    made = decoder(1)
    op = made.sketch.op
    for name in between:
        made.logits = op(name, made.logits, made.sketch.weight(9), shape=LOGITS)
    tanh = op("TANH", made.logits, shape=LOGITS)
    product = op("MUL", tanh, made.sketch.constant(np.float32(30.0)), shape=LOGITS)
    made.logits = op("RESHAPE", product, shape=LOGITS)
    assert cap_is_folded(made.weights()) is folded


def test_a_head_without_a_cap_holds_no_division() -> None:
    made = decoder(1)
    # A TANH before the head is not the cap's.
    normed = made.sketch.operators[-1].inputs[0]
    assert cap_is_folded(made.weights()) is False
    before = made.sketch.op("FULLY_CONNECTED", normed, made.sketch.weight(4, 4), shape=WIDE)
    tanh = made.sketch.op("TANH", before, shape=WIDE)
    made.logits = made.sketch.op("FULLY_CONNECTED", tanh, made.sketch.weight(9, 4), shape=LOGITS)
    assert cap_is_folded(made.weights()) is False
    made.logits = made.sketch.op("TANH", made.sketch.tensor(1, 1, 9), shape=LOGITS)
    assert cap_is_folded(made.weights()) is False


def test_an_embedding_scale_is_the_factor_of_what_enters() -> None:
    for first in (False, True):
        made = Decoder()
        x, scale = made.start(), made.sketch.constant(np.float32(2.5))
        scaled = made.sketch.op("MUL", *((scale, x) if first else (x, scale)), shape=WIDE)
        made.tap("embed", scaled)
        made.end(made.block(scaled))
        assert read(made)["embedding scale"] == 2.5


@pytest.mark.parametrize("kind", ["ADD", "MUL", "input"])
def test_what_enters_otherwise_has_none(kind: str) -> None:
    made = Decoder()
    x = made.start()
    if kind == "input":
        made.tap("embed", x := made.sketch.tensor(*WIDE))
    else:
        made.tap("embed", x := made.sketch.op(kind, x, made.sketch.weight(4), shape=WIDE))
    made.end(made.block(x))
    assert "embedding scale" not in read(made)


def frequencies(base: float, count: int = 5) -> np.ndarray:
    table = base ** -(np.arange(count) / count)
    return table.astype(np.float32).reshape(1, 1, count)


def with_tables(*tables: np.ndarray) -> Decoder:
    made = decoder(1)
    for table in tables:
        made.sketch.op("MUL", made.logits, made.sketch.constant(table), shape=LOGITS)
    return made


def test_frequencies_are_known_by_their_values() -> None:
    other = np.float32([[[3.0, 2.0]]])
    made = with_tables(other, frequencies(6100.0), other + 1)
    assert read(made, 6100.0)["rotary elements"] == 10
    assert read(made, 6100.0)["rotary base"] == 6100.0
    for expected in (None, 6101.0):
        assert read(made, expected)["rotary base"] == pytest.approx(6100.0, rel=1e-6)
    # Not among tables of another shape.
    assert "rotary base" not in read(with_tables(frequencies(6100.0)[0]), 6100.0)
    assert "rotary base" not in read(with_tables(other), 6100.0)


@pytest.mark.parametrize(("ulps", "same"), [(5, True), (16, True), (17, False)])
def test_frequencies_may_be_a_few_units_off(ulps: int, same: bool) -> None:
    table = frequencies(6100.0)
    for sign in (1, -1):
        moved = (table.view(np.int32) + np.int32([0, 0, sign * ulps, 0, 0])).view(np.float32)
        found = read(with_tables(moved), 6100.0)["rotary base"]
        assert (found == 6100.0) is same


@pytest.mark.parametrize(
    ("table", "rope"),
    [
        ([1.0, 0.5], True),
        ([[1.0, 0.5, 0.25]], True),
        ([1.0], False),
        ([0.9, 0.5], False),
        ([1.0, 0.5, 0.5], False),
        ([1.0, 1.5, 0.5], False),
        ([1.0, 0.5, 0.0], False),
        ([1.0, 0.5, -0.5], False),
    ],
)
def test_frequencies_fall_from_one_and_stay_above_zero(table: Any, rope: bool) -> None:
    assert is_rope(np.float32(table)) is rope


@pytest.mark.parametrize(
    ("table", "mask"),
    [
        (np.zeros((3, 1, 1, 3)), True),
        (np.full((1, 3, 3), -np.inf), True),
        (np.float32([[0, -2e30], [0, 0]]), True),
        (np.float32([[0, -1e30], [0, 0]]), False),
        (np.float32([[0, 1], [0, 0]]), False),
        (np.zeros((2, 3)), False),
        (np.zeros((4,)), False),
        (np.zeros((2, 2, 1, 2)), False),
    ],
)
def test_a_mask_is_a_square_of_what_shows_and_hides(table: np.ndarray, mask: bool) -> None:
    assert is_mask(table) is mask


def windowed(rows: int, window: int) -> np.ndarray:
    distance = np.arange(rows)[:, None] - np.arange(rows)[None]
    shown = (distance >= 0) & (distance < window)
    return np.where(shown, 0.0, -np.inf).reshape(rows, 1, 1, rows).astype(np.float32)


@pytest.mark.parametrize("select", ["SELECT", "SELECT_V2", "GATHER_ND", "RESHAPE"])
def test_each_block_s_window_is_that_of_the_mask_it_takes(select: str) -> None:
    made = Decoder()
    x = made.start()
    masks = [made.sketch.constant(windowed(8, n)) for n in (3, 8)]
    # Both are looked up before the first block.
    for rows in [made.sketch.op(select, mask, shape=(1, 1, 1, 8)) for mask in masks]:
        attention = len(made.sketch.operators)
        x = made.block(x)
        for op in made.sketch.operators[attention:]:
            if op.builtinOptions2 is not None and b"attention" in op.builtinOptions2.name:
                op.inputs = (*op.inputs, rows)
    made.end(x)
    # A mask that is used after the last block is no block's.
    made.sketch.op("ADD", made.logits, masks[0], shape=LOGITS)
    found = read(made)
    assert (found["blocks.0.window"], found["blocks.1.window"]) == (3, "none")
    assert "blocks.2.window" not in found


def test_a_constant_has_bytes_of_its_own() -> None:
    made = decoder(1)
    file, graph = made.sketch.file(made.signature), made.sketch.graph()
    table = values(file, graph, made.expected["tok_embedding.weight"])
    assert table is not None
    assert np.array_equal(table, np.arange(36, dtype=np.float32).reshape(9, 4))
    assert values(file, graph, made.tokens) is None
    made.sketch.tensors[made.logits].buffer = 1  # what an op makes has no bytes, whatever it says
    assert values(file, graph, made.logits) is None


def test_attributes_may_be_absent() -> None:
    made = decoder(1)
    graph = made.sketch.graph()
    norm = next(op for op in graph.ops if op.name == "odml.rms_norm")
    graph.raw.operators[norm.index].builtinOptions2.compositeAttributes = None
    assert attributes(graph, norm) == {}
    graph.raw.operators[norm.index].builtinOptions2.compositeAttributes = flex(epsilon=0.5)
    assert attributes(graph, norm) == {"epsilon": 0.5}
