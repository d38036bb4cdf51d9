"""What HF configs say, field by field, in the values that transformers gives them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import edgeverify_models as models
from edgeverify.audits import of_hf_config as module
from edgeverify.audits.model import Readings
from edgeverify.audits.of_hf_config import declared
from edgeverify.hf.forward import Forward


def norm(field: str, kind: str, eps: float, factor: str) -> dict[str, Any]:
    return {field: kind, f"{field} eps": eps, f"{field} factor": factor}


GEMMA = ("RMSNorm", 4e-3, "1 + weight")
GEMMA2 = {
    "vocabulary": 307,
    "width": 96,
    "layers": 4,
    "max length": 304,
    "embedding scale": 96**0.5,
    "tied head": "yes",
    "head bias": "no",
    "final softcap": 1.7,
    **norm("final norm", *GEMMA),
    "rotary base": 6100.0,
    "rotary scaling": "default",
    "rotary elements": 40,
}
GEMMA2_BLOCK = {
    "heads": 4,
    "key/value heads": 2,
    "head_dim": 40,
    "feed-forward width": 192,
    "gated": "yes",
    "qkv bias": "no",
    "attention output bias": "no",
    "feed-forward bias": "no",
    "query scale": 23**-0.5,
    "attention softcap": 2.3,
    "window": 13,
    "activation": "gelu (tanh form)",
    **norm("attention norm", *GEMMA),
    **norm("attention output norm", *GEMMA),
    **norm("feed-forward norm", *GEMMA),
    **norm("feed-forward output norm", *GEMMA),
    "query norm": "none",
    "key norm": "none",
    "parallel residual": "no",
}
PHI2 = {
    "vocabulary": 251,
    "width": 96,
    "layers": 3,
    "max length": 272,
    "embedding scale": "none",
    "tied head": "no",
    "head bias": "yes",
    "final softcap": "none",
    **norm("final norm", "LayerNorm", 8e-3, "weight"),
    "rotary base": 4300.0,
    "rotary scaling": "default",
    "rotary elements": 10,  # int(0.45 * 24)
}
PHI2_BLOCK = {
    "heads": 4,
    "key/value heads": 2,
    "head_dim": 24,
    "feed-forward width": 224,
    "gated": "no",
    "qkv bias": "yes",
    "attention output bias": "yes",
    "feed-forward bias": "yes",
    "query scale": 24**-0.5,
    "attention softcap": "none",
    "window": "none",
    "activation": "gelu (tanh form)",
    **norm("attention norm", "LayerNorm", 8e-3, "weight"),
    "attention output norm": "none",
    "feed-forward norm": "none",
    "feed-forward output norm": "none",
    "query norm": "none",
    "key norm": "none",
    "parallel residual": "yes",
}
OPENELM = {
    "vocabulary": 347,
    "width": 96,
    "layers": 4,
    "max length": 336,
    "embedding scale": "none",
    "tied head": "yes",
    "head bias": "no",
    "final softcap": "none",
    **norm("final norm", "RMSNorm", 9e-3, "weight"),
    "rotary base": 2900.0,
    "rotary scaling": "default",
    "rotary elements": 32,
}
OPENELM_BLOCK = {
    "head_dim": 32,
    "gated": "yes",
    "qkv bias": "no",
    "attention output bias": "no",
    "feed-forward bias": "no",
    "query scale": 32**-0.5,
    "attention softcap": "none",
    "window": "none",
    "activation": "silu",
    **norm("attention norm", "RMSNorm", 9e-3, "weight"),
    "attention output norm": "none",
    **norm("feed-forward norm", "RMSNorm", 9e-3, "weight"),
    "feed-forward output norm": "none",
    **norm("query norm", "RMSNorm", 9e-3, "weight"),
    **norm("key norm", "RMSNorm", 9e-3, "weight"),
    "parallel residual": "no",
}
# OpenELM's blocks differ: heads, key/value heads, feed-forward width.
SIZES = ((4, 2, 64), (6, 3, 128), (10, 5, 192), (12, 6, 320))


def blocks(fields: Mapping[str, Any], *changes: Mapping[str, Any]) -> dict[str, Any]:
    return {
        f"blocks.{i}.{field}": value
        for i, change in enumerate(changes)
        for field, value in {**fields, **change}.items()
    }


@pytest.mark.parametrize(
    ("port", "expected"),
    [
        (
            "gemma2",
            {**GEMMA2, **blocks(GEMMA2_BLOCK, {}, {"window": "none"}, {}, {"window": "none"})},
        ),
        ("phi2", {**PHI2, **blocks(PHI2_BLOCK, {}, {}, {})}),
        (
            "openelm",
            OPENELM
            | blocks(
                OPENELM_BLOCK,
                *(
                    {"heads": heads, "key/value heads": groups, "feed-forward width": width}
                    for heads, groups, width in SIZES
                ),
            ),
        ),
    ],
)
def test_every_field_of_a_family_is_read(port: str, expected: dict[str, Any]) -> None:
    said = declared(models.load(port).hf_configs["tiny"])
    assert said == Readings("HF config", expected)
    kinds = {key: type(value) for key, value in said.values.items()}
    assert kinds == {key: type(value) for key, value in expected.items()}


SMALL = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "vocab_size": 101,
}


@pytest.mark.parametrize(
    ("family", "changes", "fields"),
    [
        # One matrix for q, k and v, one for gate and up; a share of the head is rotated.
        ("phi3", {"partial_rotary_factor": 0.55, "rope_theta": 2e4},
         {"rotary elements": 8, "rotary base": 2e4, "blocks.0.gated": "yes",
          "blocks.0.key/value heads": 2}),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1},
         {"blocks.0.window": "none", "blocks.1.window": 7}),
        ("qwen2", {"use_sliding_window": False, "sliding_window": 7}, {"blocks.1.window": "none"}),
        ("mistral", {"sliding_window": 9}, {"blocks.0.window": 9, "blocks.1.window": 9}),
        ("mistral", {"sliding_window": None}, {"blocks.0.window": "none"}),
        ("llama", {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
         {"rotary scaling": "linear", "rotary elements": 16}),
        ("gemma3_text", {"head_dim": 12},
         {"blocks.0.query norm factor": "1 + weight", "embedding scale": 8.0}),
        ("cohere", {}, {"blocks.0.parallel residual": "yes", "blocks.0.feed-forward norm": "none"}),
        ("phi", {"qk_layernorm": True},
         {"blocks.1.query norm": "LayerNorm", "blocks.1.key norm": "LayerNorm"}),
        ("llama", {"attention_bias": True}, {"blocks.0.qkv bias": "yes",
                                             "blocks.0.attention output bias": "yes"}),
        ("llama", {"mlp_bias": True}, {"blocks.0.feed-forward bias": "yes"}),
    ],
)  # fmt: skip
def test_other_ways_to_say_it(family: str, changes: dict[str, Any], fields: dict[str, Any]) -> None:
    said = declared({**SMALL, "model_type": family, **changes}).values
    assert {key: said[key] for key in fields} == fields


def test_a_norm_without_weights_is_unread_and_the_other_fields_are_not() -> None:
    """OLMo's."""
    said = declared({**SMALL, "model_type": "olmo"})
    why = "OlmoLayerNorm cannot be tried: ValueError: it has no weights to tell its width by"
    for field in ("final norm", "blocks.1.attention norm"):
        assert said.unread[field] == why
        assert said.unread[f"{field} eps"] == "OlmoLayerNorm has no eps"
        assert not {field, f"{field} eps", f"{field} factor"} & said.values.keys()
    assert said.values["blocks.1.heads"] == 4


PLAIN = Forward(windows=(None,), rotated=(2,))


def made(monkeypatch: pytest.MonkeyPatch, forward: Forward = PLAIN, **changes: Any) -> Readings:
    """A model of one layer: 4 heads of 2, 2 groups; ``changes`` by dotted path."""
    linear = lambda rows, columns: nn.Linear(columns, rows, bias=False)  # noqa: E731
    attention = SimpleNamespace(
        q_proj=linear(8, 6), k_proj=linear(4, 6), v_proj=linear(4, 6), o_proj=linear(6, 8),
        head_dim=2, num_key_value_groups=2, scaling=0.5,
    )  # fmt: skip
    mlp = SimpleNamespace(
        gate_proj=linear(10, 6), up_proj=linear(10, 6), down_proj=linear(6, 10),
        act_fn=nn.functional.silu,
    )  # fmt: skip
    layer = SimpleNamespace(self_attn=attention, mlp=mlp, input_layernorm=nn.RMSNorm(6, eps=1e-3))
    base = SimpleNamespace(layers=[layer], norm=nn.RMSNorm(6, eps=1e-3))
    config = SimpleNamespace(max_position_embeddings=32, tie_word_embeddings=False)
    table = nn.Embedding(9, 6)
    model = SimpleNamespace(
        base_model_prefix="base", base=base, config=config,
        get_input_embeddings=lambda: table, get_output_embeddings=lambda: nn.Linear(6, 9),
    )  # fmt: skip
    owners = {"config": config, "layer": layer, "attention": attention, "mlp": mlp, "table": table,
              "base": base}  # fmt: skip
    for path, value in changes.items():
        owner, name = path.split("__")
        setattr(owners[owner], name, value)
    monkeypatch.setattr(module, "meta_model", lambda hf_config: model)
    monkeypatch.setattr(module, "forward_of", lambda hf_config: forward)
    return declared({})


def block(said: Readings, field: str) -> Any:
    return said.values[f"blocks.0.{field}"]


def test_heads_are_told_by_shapes_where_no_attribute_says_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said = made(monkeypatch)
    assert (block(said, "heads"), block(said, "key/value heads")) == (4, 2)
    said = made(monkeypatch, attention__num_heads=8, attention__num_key_value_heads=1)
    assert (block(said, "heads"), block(said, "key/value heads")) == (8, 1)


def test_a_base_that_the_config_does_not_say_is_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    said = made(monkeypatch)
    assert "rotary base" not in said.values
    told = "the config has neither rope_theta nor rope_freq_constant"
    assert said.unread == {"rotary base": told}
    assert (said.values["rotary elements"], said.values["rotary scaling"]) == (2, "default")
    said = made(monkeypatch, config__rope_parameters={"rope_theta": 5000, "rope_type": "yarn"})
    assert (said.values["rotary base"], said.values["rotary scaling"]) == (5000.0, "yarn")
    assert said.unread == {}


@pytest.mark.parametrize(
    ("forward", "changes", "elements"),
    [
        (replace(PLAIN, rotated=(4,)), {"attention__rotary_ndims": 7}, 4),
        (replace(PLAIN, rotated=(None,)), {"attention__rotary_ndims": 7}, 7),
        (replace(PLAIN, rotated=(None,)), {"attention__rotary_dim": 6}, 6),
    ],
)
def test_rotated_elements_are_those_of_the_angles_or_the_attention_s(
    forward: Forward, changes: dict[str, Any], elements: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert made(monkeypatch, forward, **changes).values["rotary elements"] == elements


def test_what_the_forward_shows_is_taken_from_it(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = Forward(windows=(5,), rotated=(2,), embedding_factor=3.0, softcap=30.0)
    said = made(monkeypatch, shown, table__scalar_embed_scale=2.0)
    assert block(said, "window") == 5
    assert (said.values["embedding scale"], said.values["final softcap"]) == (6.0, 30.0)


def test_what_the_forward_does_not_show_is_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("windows", "rotated", "embedding_factor", "softcap")
    told = made(monkeypatch, Forward(unclear={name: f"no {name}" for name in names})).unread
    assert told["blocks.0.window"] == "no windows"
    assert told["rotary elements"] == "no rotated"
    assert told["embedding scale"] == "no embedding_factor"
    assert told["final softcap"] == "no softcap"


def test_a_factor_of_one_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    for factor, found in ((None, "none"), (1.0, "none"), (torch.tensor(2.0), 2.0), (3, 3.0)):
        said = made(monkeypatch, table__scalar_embed_scale=factor)
        assert said.values["embedding scale"] == found


def test_an_activation_that_is_not_known_is_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("act_fn", "activation_fn", "act"):
        said = made(monkeypatch, **{"mlp__act_fn": None, f"mlp__{name}": torch.tanh})
        assert "blocks.0.activation" not in said.values
        told = "transformers' activation is none that is known here"
        assert said.unread["blocks.0.activation"] == told
        said = made(monkeypatch, **{"mlp__act_fn": None, f"mlp__{name}": nn.functional.relu})
        assert block(said, "activation") == "relu"


def test_some_biases_are_neither_all_nor_none(monkeypatch: pytest.MonkeyPatch) -> None:
    said = made(monkeypatch, attention__k_proj=nn.Linear(6, 4), mlp__down_proj=nn.Linear(10, 6))
    assert (block(said, "qkv bias"), block(said, "feed-forward bias")) == ("some", "some")
    assert block(said, "attention output bias") == "no"


RMS, LAYER = nn.RMSNorm(6, eps=1e-3), nn.LayerNorm(6, eps=1e-3)


@pytest.mark.parametrize(
    ("norms", "roles"),
    [
        ({"post_attention_layernorm": RMS}, {"feed-forward norm": "RMSNorm"}),
        ({"ffn_norm": RMS}, {"feed-forward norm": "RMSNorm"}),
        # Side by side, both after one norm.
        ({}, {"parallel residual": "yes"}),
        # Of the four, each has its own place; those of one side may be alone (OLMo 2).
        ({"post_attention_layernorm": LAYER, "pre_feedforward_layernorm": RMS},
         {"attention output norm": "LayerNorm", "feed-forward norm": "RMSNorm"}),
        ({"post_attention_layernorm": LAYER, "post_feedforward_layernorm": RMS},
         {"attention output norm": "LayerNorm", "feed-forward output norm": "RMSNorm"}),
    ],
)  # fmt: skip
def test_a_norm_s_role_is_told_by_the_others(
    norms: dict[str, Any], roles: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    said = made(monkeypatch, **{f"layer__{name}": made_of for name, made_of in norms.items()})
    expected = {
        "attention norm": "RMSNorm",
        "attention output norm": "none",
        "feed-forward norm": "none",
        "feed-forward output norm": "none",
        "query norm": "none",
        "key norm": "none",
        "parallel residual": "no",
        **roles,
    }
    assert {field: block(said, field) for field in expected} == expected


@pytest.mark.parametrize("name", ["input_layernorm", "attn_norm"])
@pytest.mark.parametrize("final", ["norm", "final_layernorm", "ln_f"])
def test_norms_go_by_several_names(name: str, final: str, monkeypatch: pytest.MonkeyPatch) -> None:
    changes: dict[str, Any] = {"layer__input_layernorm": None, "base__norm": None}
    changes |= {f"layer__{name}": RMS, f"base__{final}": LAYER}
    said = made(monkeypatch, **changes)
    assert (block(said, "attention norm"), said.values["final norm"]) == ("RMSNorm", "LayerNorm")
    assert block(said, "attention norm eps") == 1e-3


@pytest.mark.parametrize("query", ["q_norm", "q_layernorm"])
@pytest.mark.parametrize("key", ["k_norm", "k_layernorm"])
def test_query_and_key_norms_too(query: str, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    said = made(monkeypatch, **{f"attention__{query}": RMS, f"attention__{key}": LAYER})
    assert (block(said, "query norm"), block(said, "key norm")) == ("RMSNorm", "LayerNorm")


@pytest.mark.parametrize(
    ("changes", "gated"),
    [
        ({"mlp__gate_up_proj": nn.Linear(6, 20)}, "yes"),
        ({"mlp__proj_1": nn.Linear(6, 20)}, "yes"),
        ({"mlp__gate_proj": None, "mlp__fc1": nn.Linear(6, 10)}, "no"),
        ({"mlp__proj_1": nn.Linear(6, 10)}, "no"),
        ({}, "yes"),
    ],
)
def test_gate_and_up_are_told_by_their_rows(
    changes: dict[str, Any], gated: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert block(made(monkeypatch, **changes), "gated") == gated


@pytest.mark.parametrize("name", ["down_proj", "fc2", "proj_2"])
@pytest.mark.parametrize("output", ["o_proj", "dense", "out_proj"])
def test_projections_go_by_several_names(
    name: str, output: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes: dict[str, Any] = {"mlp__down_proj": None, "attention__o_proj": None}
    changes |= {f"mlp__{name}": nn.Linear(10, 6), f"attention__{output}": nn.Linear(8, 6)}
    said = made(monkeypatch, **changes)
    assert block(said, "feed-forward width") == 10
    assert (block(said, "attention output bias"), block(said, "heads")) == ("yes", 4)


def test_a_layer_without_projections_that_are_known_cannot_be_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(AttributeError, match=r"SimpleNamespace has none of .*'qkv_proj'"):
        made(monkeypatch, attention__k_proj=None)


@pytest.mark.parametrize("part", [("self_attn", "attn"), ("self_attn", "attention"),
                                  ("mlp", "ffn"), ("mlp", "feed_forward")])  # fmt: skip
def test_attention_and_feed_forward_go_by_several_names(
    part: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    right = made(monkeypatch)
    was, other = part
    model: Any = module.meta_model({})
    layer = model.base.layers[0]
    setattr(layer, other, getattr(layer, was))
    delattr(layer, was)
    assert declared({}) == right
