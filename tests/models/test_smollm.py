"""SmolLM and SmolLM2."""

from __future__ import annotations

import pytest

PUBLISHED = {"135m": 134_515_008, "360m": 361_821_120, "1.7b": 1_711_376_384}


@pytest.mark.parametrize("name", ["smollm", "smollm2"])
@pytest.mark.parametrize("size", PUBLISHED)
def test_published_sizes(family, name, size):
    family(name, size).assert_published_shapes(PUBLISHED[size])


@pytest.mark.parametrize(
    ("name", "size", "base", "positions"),
    [
        ("smollm", "135m", 1e4, 2048),
        ("smollm", "1.7b", 1e4, 2048),
        ("smollm2", "135m", 1e5, 8192),
        ("smollm2", "360m", 1e5, 8192),
        ("smollm2", "1.7b", 1.3e5, 8192),
    ],
)
def test_the_generations_differ(family, name, size, base, positions):
    config = family(name, size).mapped()
    assert config.block_config(0).attn_config.rotary_base == base
    assert config.max_seq_len == positions
    assert config.lm_head_share_weight_with_embedding


@pytest.mark.parametrize("name", ["smollm", "smollm2"])
@pytest.mark.parametrize("layout", ["default", "transposed"])
def test_same_logits_as_transformers(family, name, layout):
    family(name).assert_same(layout=layout)


@pytest.mark.parametrize("name", ["smollm", "smollm2"])
def test_strict_loading(family, check_strict_loading, name):
    check_strict_loading(family(name))


@pytest.mark.parametrize("name", ["smollm", "smollm2"])
def test_untied_config(family, name):
    family(name).but(tie_word_embeddings=False).assert_same()
