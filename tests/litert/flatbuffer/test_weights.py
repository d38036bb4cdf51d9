"""Which constant is which weight, on graphs made by hand."""

from __future__ import annotations

import numpy as np
import pytest

from tests.audits.graphs import WIDE, Decoder, decoder


@pytest.mark.parametrize("lookup", ["EMBEDDING_LOOKUP", "GATHER"])
@pytest.mark.parametrize(
    "options",
    [{}, {"bias": True}, {"heads": True}, {"own": True}, {"inner": "plain"}, {"apart": "three"},
     {"apart": "three", "bias": True, "heads": True},
     {"heads": True, "own": True, "inner": "plain", "bias": True}],
)  # fmt: skip
def test_every_weight_is_told_by_what_it_is_for(lookup: str, options: dict[str, object]) -> None:
    made = decoder(lookup=lookup, **options)
    found = made.weights()
    assert found.tensors == made.expected
    assert (found.unknown, found.untold) == ({}, set())
    norms = {name.rpartition(".")[0] for name in made.expected if "norm" in name}
    assert set(found.norms) == norms
    for name, op in found.norms.items():
        assert made.expected[f"{name}.weight"] in op.inputs


def test_a_block_ends_with_the_op_that_makes_its_output() -> None:
    made = decoder(2)
    found = made.weights()
    ends = [found.graph.producer[made.found.taps[f"blocks.{i}.out"].tensor] for i in (0, 1)]
    assert found.ends == [op.index for op in ends]
    after = found.graph.ops[ends[0].index + 1]
    assert [found.block_of(op) for op in (found.graph.ops[0], ends[0], after)] == [0, 0, 1]
    assert found.block_of(found.graph.ops[-1]) == 2


def test_a_block_whose_end_was_not_found_goes_on_to_the_last_op() -> None:
    made = decoder(1)
    del made.found.taps["blocks.0.out"]
    found = made.weights()
    assert found.ends == [len(found.graph.ops)]
    head = found.graph.ops[-1]
    assert found.block_of(head) == 0
    assert "lm_head.weight" not in found.tensors


def test_the_gate_is_the_projection_that_an_activation_takes() -> None:
    """Also where the other projection comes first."""
    made = Decoder()
    op, x = made.sketch.op, made.start()
    made.blocks = 1
    normed = made.norm(x, "transformer_blocks.0.pre_atten_norm")
    made.tap(
        "blocks.0.attn.v", made.project(normed, "transformer_blocks.0.atten_func.qkv_projection")
    )
    up = made.project(normed, "transformer_blocks.0.ff.w3")
    gate = op("TRANSPOSE", made.project(normed, "transformer_blocks.0.ff.w1"), shape=WIDE)
    product = op("MUL", op("GELU", gate, shape=WIDE), up, shape=WIDE)
    down = made.tap("blocks.0.ff.out", made.project(product, "transformer_blocks.0.ff.w2"))
    made.tap("blocks.0.out", op("ADD", x, down, shape=WIDE))
    assert made.weights().tensors == made.expected


@pytest.mark.parametrize("kind", ["two gates", "three", "no gate"])
def test_projections_that_cannot_be_told_apart_are_unknown(kind: str) -> None:
    made = decoder(1, inner=kind if kind != "no gate" else "gated")
    if kind == "no gate":  # the activation is of the product
        for op in made.sketch.operators:
            code = made.sketch.codes[op.opcodeIndex]
            if code.builtinCode == 14:  # LOGISTIC
                code.builtinCode = 18  # MUL
        lost = [made.expected.pop(f"transformer_blocks.0.ff.w{n}.weight") for n in (1, 3)]
    found = made.weights()
    assert found.tensors == made.expected
    assert set(found.unknown.values()) == {
        f"op {op.index}, a FULLY_CONNECTED, is none that is known here"
        for op in found.graph.ops
        if found.unknown.keys() & set(op.inputs)
    }
    assert len(found.unknown) == (3 if kind == "three" else 2)
    if kind == "no gate":
        assert set(found.unknown) == set(lost)


@pytest.mark.parametrize(("apart", "count"), [("together", 3), ("two", 1)])
def test_projections_that_are_more_than_one_of_q_k_and_v_are_unknown(
    apart: str, count: int
) -> None:
    made = decoder(2, apart=apart)
    found = made.weights()
    assert found.tensors == made.expected  # those of the feed-forward, too
    assert len(found.unknown) == 2 * count
    assert found.untold == {0, 1}


def test_a_bias_of_an_unknown_projection_is_unknown() -> None:
    made = decoder(1, inner="two gates", bias=True)
    for name in [n for n in made.expected if n.startswith(".")]:
        del made.expected[name]
    found = made.weights()
    assert found.tensors == made.expected
    assert len(found.unknown) == 4


def test_other_constants_are_told_by_the_op_that_takes_them() -> None:
    made = decoder(1)
    x = made.found.taps["blocks.0.ff.out"].tensor
    table, scalar, indices = (
        made.sketch.weight(1, 1, 2),
        made.sketch.constant(np.float32([2.0])),
        made.sketch.constant(np.arange(4)),
    )
    made.sketch.op("ADD", x, table, shape=WIDE)
    made.sketch.op("MUL", x, scalar, shape=WIDE)
    made.sketch.op("MUL", x, indices, shape=WIDE)
    made.sketch.op("MUL", x, made.expected["final_norm.weight"], shape=WIDE)
    found = made.weights()
    assert found.tensors == made.expected
    assert found.unknown == {table: "a ADD takes it"}


def test_a_second_constant_for_one_weight_is_unknown() -> None:
    made = decoder(1)
    found = made.weights()
    other = made.project(made.found.taps["blocks.0.out"].tensor, "", 9)
    second = made.sketch.operators[-1].inputs[1]
    again = made.sketch.op("EMBEDDING_LOOKUP", other, made.expected["tok_embedding.weight"],
                           shape=WIDE)  # fmt: skip
    assert again
    found = made.weights()
    assert found.tensors == made.expected
    assert found.unknown == {second: "another constant is lm_head.weight, too"}


BEFORE, OUT, DOWN = "pre_atten_norm", "attn.out", "ff.out"
KEY, QUERY = "atten_func.key_norm", "atten_func.query_norm"


@pytest.mark.parametrize(
    ("lost", "told"),
    [
        ((), {BEFORE, KEY, QUERY, "post_atten_norm", "ff.pre_ff_norm", "ff.post_ff_norm"}),
        ((DOWN,), {BEFORE, KEY, QUERY}),
        # As in the last block of a prefill that returns no logits.
        ((OUT, DOWN), {BEFORE, KEY}),
        ((OUT,), {BEFORE, KEY}),
        (("attn.k",), {BEFORE, "post_atten_norm", "ff.pre_ff_norm", "ff.post_ff_norm"}),
        (("attn.q", "attn.k", "attn.v"), set()),
        (("attn.q", "attn.k", "attn.v", OUT, DOWN), set()),
    ],
)
def test_a_norm_is_not_named_by_taps_that_were_not_found(
    lost: tuple[str, ...], told: set[str]
) -> None:
    made = decoder(1, heads=True, own=True)
    for tap in lost:
        del made.found.taps[f"blocks.0.{tap}"]
    found = made.weights()
    block = "transformer_blocks.0."
    assert set(found.norms) == {"final_norm", *(block + name for name in told)}
    norms = {name: t for name, t in found.tensors.items() if "norm" in name}
    assert norms == {f"{name}.weight": made.expected[f"{name}.weight"] for name in found.norms}
    unknown = {t for name, t in made.expected.items() if "norm" in name} - set(norms.values())
    assert unknown <= found.unknown.keys()
    assert (found.untold == {0}) == bool(lost)
    for tensor in unknown:
        assert found.unknown[tensor].endswith("a odml.rms_norm, is none that is known here")
