"""OpenELM, against this project's own reference; that one is held against mlx-lm elsewhere."""

from __future__ import annotations

import pytest

from edgeverify_models.openelm import heads, make_divisible, per_layer
from edgeverify_models.port import build_model

# Apple's published totals; query heads of the first and last layer; feed-forward widths of the
# first three layers and the last.
PUBLISHED = {
    "270m": (271_527_168, (12, 20), (768, 1024, 1280, 5120)),
    "450m": (457_179_136, (12, 24), (768, 1024, 1280, 6144)),
    "1.1b": (1_079_891_456, (16, 32), (1024, 1280, 1536, 8192)),
    "3b": (3_036_647_424, (12, 24), (1536, 1792, 2048, 12288)),
}


@pytest.mark.parametrize("size", PUBLISHED)
def test_published_sizes(family, size):
    parameters, (first, last), widths = PUBLISHED[size]
    published = family("openelm", size)
    published.assert_published_shapes(parameters)
    config = published.mapped()
    blocks = config.block_configs
    assert (blocks[0].attn_config.num_heads, blocks[-1].attn_config.num_heads) == (first, last)
    assert all(b.attn_config.num_heads == 4 * b.attn_config.num_query_groups for b in blocks)
    picked = [blocks[index].ff_config.intermediate_size for index in (0, 1, 2, -1)]
    assert tuple(picked) == widths


@pytest.mark.parametrize("size", [*PUBLISHED, "tiny"])
def test_published_lists_follow_from_the_rule(family, size):
    config = dict(family("openelm", size).config)
    query, kv = config.pop("num_query_heads"), config.pop("num_kv_heads")
    assert heads(config) == (query, kv)
    if size != "tiny":
        assert (
            per_layer({**config, "ffn_multipliers": [0.5, 4.0]}, "ffn_multipliers")
            == (config["ffn_multipliers"])
        )


@pytest.mark.parametrize(
    ("value", "divisor", "expected"),
    [
        (47.04, 32, 64),  # 32 is the nearest, but more than a tenth too little
        (48.0, 32, 64),
        (112.3, 32, 128),
        (201.6, 32, 192),
        (3.0, 32, 32),
        (1536.0, 256, 1536),
    ],
)
def test_make_divisible(value, divisor, expected):
    assert make_divisible(value, divisor) == expected


@pytest.mark.parametrize("layout", ["default", "transposed"])
def test_same_logits_as_the_reference(family, layout):
    family("openelm").assert_same(layout=layout)


def test_strict_loading(family, check_strict_loading):
    check_strict_loading(family("openelm"))


@pytest.mark.parametrize(
    "changes",
    [
        {"normalize_qk_projections": False},
        {"share_input_output_layers": False},
        {"ffn_with_glu": False},
        {"ffn_with_glu": False, "activation_fn_name": "gelu"},
        {"num_query_heads": ..., "num_kv_heads": ...},
        {"num_query_heads": [4, 4, 8, 6], "num_kv_heads": [2, 4, 2, 1], "qkv_multipliers": None},
        {"num_query_heads": ..., "num_kv_heads": ..., "qkv_multipliers": 1.0},
        {"num_query_heads": ..., "num_kv_heads": ..., "num_gqa_groups": None},
        {"ffn_multipliers": 1.5},
        {"ffn_multipliers": [0.5, 2.0]},
        {"rms_norm_eps": ...},
        {"rope_freq_constant": ...},
    ],
    ids=str,
)
def test_config_values_are_taken_over(family, changes):
    family("openelm").but(**changes).assert_same()


@pytest.mark.parametrize(
    "changes", [{"rms_norm_eps": 9.1e-3}, {"rope_freq_constant": 2950}], ids=str
)
def test_tiny_makes_it_observable(family, changes):
    tiny = family("openelm")
    wrong = build_model(tiny.port, tiny.but(**changes).config, tiny.state, mask_cache_size=70)
    assert tiny.error(tiny.run(wrong)) > 1e-4


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"activation_fn_name": "gelu"}, "'swish' with ffn_with_glu"),
        ({"normalization_layer_name": "layer_norm"}, "normalization_layer_name='layer_norm'"),
        ({"num_query_heads": [4, 8, 12, 16]}, "by qkv_multipliers"),
        ({"num_kv_heads": [1, 2, 3]}, "a number for each of 4 layers"),
        ({"num_kv_heads": [3, 2, 3, 3]}, "divisors of num_query_heads"),
        ({"ffn_multipliers": [1.0, 2.0, 3.0]}, "a number, two numbers or 4 numbers"),
        ({"model_dim": ...}, "key 'model_dim' is missing"),
    ],
)
def test_config_values_are_refused(family, changes, words):
    with pytest.raises(ValueError, match=r"HF config: .*expected") as error:
        family("openelm").but(**changes).mapped()
    assert words in str(error.value)
