"""Phi-2."""

from __future__ import annotations

import pytest

from edgeverify_models.port import LoadError, build_model


def test_published_size(family):
    family("phi2", "2.7b").assert_published_shapes(2_779_683_840)
    config = family("phi2", "2.7b").mapped()
    attn_config = config.block_config(0).attn_config
    assert int(attn_config.rotary_percentage * attn_config.head_dim) == 32


@pytest.mark.parametrize("layout", ["default", "transposed"])
def test_same_logits_as_transformers(family, layout):
    family("phi2").assert_same(layout=layout)


def test_strict_loading(family, check_strict_loading):
    check_strict_loading(family("phi2"))


@pytest.mark.parametrize("name", ["lm_head.bias", "model.final_layernorm.bias"])
def test_a_missing_bias_is_refused(family, name):
    tiny = family("phi2")
    state = {key: value for key, value in tiny.state.items() if key != name}
    with pytest.raises(LoadError, match=r"lm_head\.bias|final_norm\.bias"):
        build_model(tiny.port, tiny.config, state, mask_cache_size=0)


@pytest.mark.parametrize(
    "changes",
    [
        {"num_key_value_heads": 4},
        {"num_key_value_heads": None},
        {"hidden_act": "gelu"},
        {"hidden_act": ...},
        {"layer_norm_eps": ...},
        {"tie_word_embeddings": True},
        {"partial_rotary_factor": 1.0},
        {"partial_rotary_factor": ...},  # one half
        {
            "partial_rotary_factor": ...,
            "rope_theta": ...,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 811.0,
                "partial_rotary_factor": 0.34,
            },
        },
    ],
    ids=str,
)
def test_config_values_are_taken_over(family, changes):
    family("phi2").but(**changes).assert_same()


@pytest.mark.parametrize("factor", [0.1, 0.3, 0.35, 0.4, 0.45, 0.6, 0.7, 0.9])
@pytest.mark.parametrize("width", [80, 160, 240, 320, 400])
def test_rotated_elements_truncate_as_in_transformers(family, factor, width):
    """Products such as 0.3 * 10 or 0.7 * 10 fall just below or onto a whole number."""
    tiny = family("phi2").but(hidden_size=width, partial_rotary_factor=factor)
    rotary = tiny.meta().model.rotary_emb
    rotated = int(tiny.meta().model.layers[0].self_attn.rotary_ndims)
    if rotated % 2:
        with pytest.raises(ValueError, match=f"even number of rotated elements.* not {rotated}"):
            tiny.mapped()
        return
    attn_config = tiny.mapped().block_config(0).attn_config
    assert int(attn_config.rotary_percentage * attn_config.head_dim) == rotated
    assert rotary.inv_freq.shape == (rotated // 2,)


@pytest.mark.parametrize(
    "changes",
    [
        {"partial_rotary_factor": 0.5},
        {"layer_norm_eps": 8.1e-3},
        {"rope_theta": 4400.0},
        {"hidden_act": "gelu"},
    ],
    ids=str,
)
def test_tiny_makes_it_observable(family, changes):
    tiny = family("phi2")
    wrong = build_model(tiny.port, tiny.but(**changes).config, tiny.state, mask_cache_size=70)
    assert tiny.error(tiny.run(wrong)) > 1e-4


def test_qk_layernorm_is_refused(family):
    with pytest.raises(ValueError, match="qk_layernorm=True cannot be expressed"):
        family("phi2").but(qk_layernorm=True).mapped()
