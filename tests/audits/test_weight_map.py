"""Where each family's tensors belong, by the names that Hugging Face gives them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from litert_torch.generative.layers.model_config import FeedForwardType

from edgeverify.audits.weight_map import Places, Span, block_of, places, uncovered
from edgeverify.litert.flatbuffer.weights import EMBEDDING, HEAD

HEADS, GROUPS, DIM, WIDTH, INNER = 4, 2, 3, 10, 6


def config(
    *,
    layers: int = 1,
    tied: bool = False,
    by_group: bool = False,
    gated: bool = True,
) -> Any:
    """As much of a ``ModelConfig`` as places are told by."""
    attention = SimpleNamespace(
        num_heads=HEADS,
        num_query_groups=GROUPS,
        head_dim=DIM,
        qkv_transpose_before_split=not by_group,
    )
    kind = FeedForwardType.GATED if gated else FeedForwardType.SEQUENTIAL
    block = SimpleNamespace(attn_config=attention, ff_config=SimpleNamespace(type=kind))
    return SimpleNamespace(
        num_layers=layers,
        lm_head_share_weight_with_embedding=tied,
        block_config=lambda index: dict.fromkeys(range(layers), block)[index],
    )


def placed(*names: str, **options: Any) -> Places:
    """The places of weights and biases; projections of q, k, v, gate and up have their rows."""
    rows = {"q_proj": 12, "k_proj": 6, "v_proj": 6, "qkv_proj": 24, "gate_proj": 6, "up_proj": 7,
            "gate_up_proj": 12, "proj_1": 12}  # fmt: skip
    shapes = {name: (rows.get(name.split(".")[-2], WIDTH), WIDTH) for name in names}
    return places(shapes, config(**options))


AT = "transformer_blocks.0."


@pytest.mark.parametrize(
    ("tensor", "parameter"),
    [
        ("model.embed_tokens.weight", EMBEDDING),
        ("transformer.token_embeddings.weight", EMBEDDING),
        ("transformer.wte.weight", EMBEDDING),
        ("model.norm.weight", "final_norm.weight"),
        ("transformer.norm.weight", "final_norm.weight"),
        ("model.final_layernorm.weight", "final_norm.weight"),
        ("model.final_layernorm.bias", "final_norm.bias"),
        ("transformer.ln_f.bias", "final_norm.bias"),
        ("lm_head.weight", HEAD),
        ("lm_head.bias", "lm_head.bias"),
        # Llama, Gemma
        ("model.layers.0.self_attn.o_proj.weight", AT + "atten_func.output_projection.weight"),
        ("model.layers.0.mlp.down_proj.weight", AT + "ff.w2.weight"),
        ("model.layers.0.mlp.up_proj.weight", AT + "ff.w1.weight"),
        ("model.layers.0.input_layernorm.weight", AT + "pre_atten_norm.weight"),
        ("model.layers.0.post_attention_layernorm.weight", AT + "post_atten_norm.weight"),
        ("model.layers.0.post_feedforward_layernorm.weight", AT + "ff.post_ff_norm.weight"),
        ("model.layers.0.self_attn.q_norm.weight", AT + "atten_func.query_norm.weight"),
        ("model.layers.0.self_attn.k_norm.weight", AT + "atten_func.key_norm.weight"),
        # Phi
        ("model.layers.0.self_attn.dense.weight", AT + "atten_func.output_projection.weight"),
        ("model.layers.0.self_attn.dense.bias", AT + "atten_func.output_projection.bias"),
        ("model.layers.0.mlp.fc1.bias", AT + "ff.w1.bias"),
        ("model.layers.0.mlp.fc2.weight", AT + "ff.w2.weight"),
        ("model.layers.0.input_layernorm.bias", AT + "pre_atten_norm.bias"),
        ("model.layers.0.self_attn.q_layernorm.weight", AT + "atten_func.query_norm.weight"),
        ("model.layers.0.self_attn.k_layernorm.bias", AT + "atten_func.key_norm.bias"),
        # OpenELM
        ("transformer.layers.0.attn.out_proj.weight", AT + "atten_func.output_projection.weight"),
        ("transformer.layers.0.attn.qkv_proj.weight", AT + "atten_func.qkv_projection.weight"),
        ("transformer.layers.0.ffn.proj_2.weight", AT + "ff.w2.weight"),
        ("transformer.layers.0.attn_norm.weight", AT + "pre_atten_norm.weight"),
        ("transformer.layers.0.ffn_norm.weight", AT + "post_atten_norm.weight"),
        # other ways to say layer
        ("transformer.h.0.mlp.down_proj.weight", AT + "ff.w2.weight"),
        ("blocks.0.mlp.down_proj.weight", AT + "ff.w2.weight"),
    ],
)
def test_a_tensor_has_its_place_by_its_name(tensor: str, parameter: str) -> None:
    assert placed(tensor) == {parameter: (Span(tensor),)}


@pytest.mark.parametrize(
    "tensor",
    [
        "model.layers.0.self_attn.rotary_emb.inv_freq",
        "model.layers.0.self_attn.sinks.weight",
        "model.layers.1.mlp.down_proj.weight",  # a block that the model does not have
        "model.layers.0.self_attn.q_proj.weight",  # not q alone
        "model.layers.0.mlp.gate_proj.weight",
        "lm_head.weight.scale",
        "vision.norm.weight",
    ],
)
def test_what_is_not_known_has_none(tensor: str) -> None:
    assert placed(tensor) == {}


def test_norms_before_and_after_the_feed_forward_are_told_apart() -> None:
    """Gemma 2: only there is the norm after the attention not the one before the feed-forward."""
    at = "model.layers.0."
    before, after = (
        f"{at}pre_feedforward_layernorm.weight",
        f"{at}post_feedforward_layernorm.weight",
    )
    own = f"{at}post_attention_layernorm.weight"
    assert placed(before, after, own) == {
        AT + "ff.pre_ff_norm.weight": (Span(before),),
        AT + "ff.post_ff_norm.weight": (Span(after),),
        AT + "post_atten_norm.weight": (Span(own),),
    }
    assert placed(before) == {AT + "post_atten_norm.weight": (Span(before),)}


def test_every_block_has_its_own_places() -> None:
    names = [f"model.layers.{i}.mlp.down_proj.weight" for i in range(12)]
    assert placed(*names, layers=11) == {
        f"transformer_blocks.{i}.ff.w2.weight": (Span(names[i]),) for i in range(11)
    }


def test_a_tied_head_is_the_table_unless_the_checkpoint_has_one() -> None:
    table, head = "model.embed_tokens.weight", "lm_head.weight"
    assert placed(table, tied=True) == {EMBEDDING: (Span(table),), HEAD: (Span(table),)}
    assert placed(head, table, tied=True)[HEAD] == (Span(head),)
    assert placed(table) == {EMBEDDING: (Span(table),)}
    assert placed("model.norm.weight", tied=True).keys() == {"final_norm.weight"}


FUSED = AT + "atten_func.qkv_projection"
Q, K, V = (f"model.layers.0.self_attn.{part}_proj" for part in "qkv")
ALL = "transformer.layers.0.attn.qkv_proj.weight"


@pytest.mark.parametrize("kind", ["weight", "bias"])
def test_q_k_and_v_stand_one_after_another(kind: str) -> None:
    names = [f"{part}.{kind}" for part in (Q, K, V)]
    assert placed(*reversed(names)) == {
        f"{FUSED}.{kind}": (
            Span(names[0], None, (0, 12)),
            Span(names[1], None, (12, 18)),
            Span(names[2], None, (18, 24)),
        )
    }


def test_q_k_and_v_stand_group_by_group_where_the_forward_splits_them_so() -> None:
    q, k, v = (f"{part}.weight" for part in (Q, K, V))
    assert placed(q, k, v, by_group=True) == {
        f"{FUSED}.weight": (
            Span(q, (0, 6), (0, 6)),
            Span(k, (0, 3), (6, 9)),
            Span(v, (0, 3), (9, 12)),
            Span(q, (6, 12), (12, 18)),
            Span(k, (3, 6), (18, 21)),
            Span(v, (3, 6), (21, 24)),
        )
    }


def test_rows_are_whole_numbers() -> None:
    q, k, v = (f"{part}.weight" for part in (Q, K, V))
    for made in (placed(q, k, v, by_group=True), placed(BOTH[0])):
        rows = [n for spans in made.values() for s in spans for n in (*s.source, *(s.target or ()))]
        assert {type(n) for n in rows} == {int}


def test_blocks_of_one_matrix_are_taken_apart_where_the_forward_splits_it_by_group() -> None:
    assert placed(ALL, by_group=True) == {
        f"{FUSED}.weight": (
            Span(ALL, (0, 6), (0, 6)),
            Span(ALL, (12, 15), (6, 9)),
            Span(ALL, (18, 21), (9, 12)),
            Span(ALL, (6, 12), (12, 18)),
            Span(ALL, (15, 18), (18, 21)),
            Span(ALL, (21, 24), (21, 24)),
        )
    }


@pytest.mark.parametrize("by_group", [False, True])
def test_q_k_and_v_may_be_three_matrices(by_group: bool) -> None:
    at = AT + "atten_func."
    q, k, v = (f"{part}.weight" for part in (Q, K, V))
    shapes = {q: (12, WIDTH), k: (6, WIDTH), v: (6, WIDTH)}
    made = config(by_group=by_group)
    assert places(shapes, made, {0}) == {
        f"{at}q_projection.weight": (Span(q),),
        f"{at}k_projection.weight": (Span(k),),
        f"{at}v_projection.weight": (Span(v),),
    }
    assert places(shapes, made, {1}).keys() == {f"{FUSED}.weight"}
    assert places({ALL: (24, WIDTH)}, made, {0}) == {
        f"{at}q_projection.weight": (Span(ALL, (0, 12)),),
        f"{at}k_projection.weight": (Span(ALL, (12, 18)),),
        f"{at}v_projection.weight": (Span(ALL, (18, 24)),),
    }


GATE, UP = "model.layers.0.mlp.gate_proj.weight", "model.layers.0.mlp.up_proj.weight"
BOTH = ("model.layers.0.mlp.gate_up_proj.weight", "transformer.layers.0.ffn.proj_1.weight")


def test_gate_and_up_are_two_matrices_or_one_after_the_other() -> None:
    w1, w3 = AT + "ff.w1.weight", AT + "ff.w3.weight"
    assert placed(UP, GATE) == {w1: (Span(GATE),), w3: (Span(UP),)}
    assert placed(UP, GATE, gated=False) == {
        w1: (Span(GATE, None, (0, 6)), Span(UP, None, (6, 13)))
    }
    for both in BOTH:
        assert placed(both) == {w1: (Span(both, (0, 6)),), w3: (Span(both, (6, 12)),)}
        assert placed(both, gated=False) == {w1: (Span(both),)}


def test_a_block_is_told_by_the_number_in_a_name() -> None:
    for name in ("model.layers.12.mlp", "h.12.mlp", "transformer_blocks.12.ff"):
        assert block_of(name) == 12
    assert block_of("lm_head.weight") is None


def test_a_span_is_all_of_both_unless_it_says_otherwise() -> None:
    assert (Span("a").source, Span("a").target) == (None, None)


def test_each_row_is_to_be_in_one_span() -> None:
    rows = dict.fromkeys(("right", "none", "twice", "lacking", "first", "last"), 4)
    spans = [
        Span("right", (1, 4)),
        Span("right", (0, 1)),
        Span("twice"),
        Span("twice", (0, 1)),
        Span("lacking", (2, 4)),
        Span("lacking", (2, 4)),
        Span("first", (1, 4)),
        Span("last", (0, 3)),
    ]
    assert uncovered(spans, rows) == {
        "none": "is in no parameter",
        "twice": "has 4 rows, of which 0 to 1, 0 to 4 are used",
        "lacking": "has 4 rows, of which 2 to 4, 2 to 4 are used",
        "first": "has 4 rows, of which 1 to 4 are used",
        "last": "has 4 rows, of which 0 to 3 are used",
    }
