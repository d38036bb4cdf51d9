"""Gemma 1."""

from __future__ import annotations

import pytest
import torch
from litert_torch.generative.layers import model_config as cfg

from edgeverify_models.port import build_model, map_state


@pytest.mark.parametrize(("size", "parameters"), [("2b", 2_506_172_416), ("7b", 8_537_680_896)])
def test_published_sizes(family, size, parameters):
    family("gemma1", size).assert_published_shapes(parameters)


@pytest.mark.parametrize("layout", ["default", "transposed"])
def test_same_logits_as_transformers(family, layout):
    family("gemma1").assert_same(layout=layout)


def test_strict_loading(family, check_strict_loading):
    check_strict_loading(family("gemma1"))


@pytest.mark.parametrize(
    ("hidden_act", "expected"),
    [
        ("gelu", cfg.ActivationType.GELU_TANH),  # legacy, for the tanh form
        ("gelu_pytorch_tanh", cfg.ActivationType.GELU_TANH),
        (..., cfg.ActivationType.GELU_TANH),
        ("silu", cfg.ActivationType.SILU),
    ],
)
@pytest.mark.parametrize("hidden_activation", [..., "gelu", None])
def test_activation(family, hidden_act, expected, hidden_activation):
    """``hidden_act`` alone counts, in transformers as here."""
    tiny = family("gemma1").but(hidden_act=hidden_act, hidden_activation=hidden_activation)
    assert tiny.mapped().block_config(0).ff_config.activation.type == expected
    tiny.assert_same(steps=(24,))


@pytest.mark.parametrize(
    "changes",
    [
        {"num_key_value_heads": 1},
        {"num_key_value_heads": 4},
        {"attention_bias": True},
        {"tie_word_embeddings": False},
        {"rms_norm_eps": ...},
        {"rope_theta": ..., "rope_parameters": {"rope_type": "default", "rope_theta": 311.0}},
    ],
    ids=str,
)
def test_config_values_are_taken_over(family, changes):
    family("gemma1").but(**changes).assert_same()


def test_bidirectional_attention_is_refused(family):
    with pytest.raises(ValueError, match="use_bidirectional_attention=True"):
        family("gemma1").but(use_bidirectional_attention=True).mapped()


@pytest.mark.parametrize("name", ["gemma1", "gemma2"])
def test_kaggle_names(family, name):
    """The Kaggle checkpoints fuse q, k and v, and call the table ``embedder``: scheme 1."""
    tiny = family(name)
    kaggle = {}
    for key, value in tiny.state.items():
        if key == "model.embed_tokens.weight":
            kaggle["embedder.weight"] = value
        elif ".q_proj." in key:
            parts = [tiny.state[key.replace("q_proj", f"{part}_proj")] for part in "qkv"]
            kaggle[key.replace("q_proj", "qkv_proj")] = torch.cat(parts)
        elif ".k_proj." not in key and ".v_proj." not in key:
            kaggle[key] = value
    _, reasons = map_state(tiny.port, tiny.mapped(), kaggle)
    assert list(reasons) == ["0"]
    model = build_model(tiny.port, tiny.config, kaggle, mask_cache_size=24)
    logits = tiny.run(model, steps=(24,), cache_rows=24)
    assert torch.equal(logits, tiny.run(tiny.build(24), steps=(24,), cache_rows=24))
