"""Gemma 2: two kinds of layers, so two masks, built inside or given."""

from __future__ import annotations

import pytest
import torch

from edgeverify_models.gemma2 import GLOBAL, LOCAL
from edgeverify_models.port import build_model

LAYOUTS = ["default", "transposed"]


def masks_by_rule(window, rows):
    """Both masks from the positions alone, by transformers' rule: W keys, the own one included."""

    def make(positions):
        query, key = positions[:, None], torch.arange(rows)[None, :]
        causal = key <= query
        seen = {GLOBAL: causal, LOCAL: causal & (key > query - window)}
        return {
            kind: torch.zeros(mask.shape).masked_fill(~mask, float("-inf"))[None, None]
            for kind, mask in seen.items()
        }

    return make


def test_published_size(family):
    family("gemma2", "2b").assert_published_shapes(2_614_341_888)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_masks_inside(family, layout):
    family("gemma2").assert_same(layout=layout)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_masks_given(family, layout):
    tiny = family("gemma2")
    model = tiny.build(mask_cache_size=0)
    rows = 70
    logits = tiny.run(model, layout=layout, cache_rows=rows, masks=masks_by_rule(13, rows))
    assert tiny.error(logits) < 1e-5
    inside = tiny.run(tiny.build(rows), layout=layout, cache_rows=rows)
    assert torch.equal(logits, inside)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("cache_rows", [65, 70, 128, 304])
def test_mask_cache_longer_than_the_kv_cache(family, layout, cache_rows):
    tiny = family("gemma2")
    model = tiny.build(mask_cache_size=304)
    assert tiny.error(tiny.run(model, layout=layout, cache_rows=cache_rows)) < 1e-5


@pytest.mark.parametrize("window", [1, 2, 13, 24, 25, 65, 400])
def test_window_edge(family, window):
    """Window and chunk ends of all kinds, among them one token and more than the conversation."""
    family("gemma2").but(sliding_window=window).assert_same()


@pytest.mark.parametrize("off_by", [-1, 1])
def test_a_window_off_by_one_is_seen(family, off_by):
    tiny = family("gemma2")
    masks = masks_by_rule(13 + off_by, 70)
    assert tiny.error(tiny.run(tiny.build(0), masks=masks)) > 1e-3


def test_one_mask_for_all_layers_is_refused(family):
    tiny = family("gemma2")
    model = tiny.build(0)
    with pytest.raises(ValueError, match="mask is Tensor; expected a dict of 'global' and 'local'"):
        tiny.run(model, masks=lambda positions: torch.zeros(1, 1, len(positions), 70))
    with pytest.raises(ValueError, match=r"mask is \['global'\]; expected"):
        tiny.run(model, masks=lambda positions: {GLOBAL: torch.zeros(1, 1, len(positions), 70)})


def test_masks_must_fit(family):
    tiny = family("gemma2")
    with pytest.raises(ValueError, match="mask_cache_size is 0, so the masks must be given"):
        tiny.run(tiny.build(0))
    with pytest.raises(ValueError, match="the KV cache has 70 rows and the mask cache 66"):
        tiny.run(tiny.build(66))
    with pytest.raises(ValueError, match=r"mask_cache_size=305 is more than .* max_seq_len=304"):
        tiny.build(305)


def test_strict_loading(family, check_strict_loading):
    check_strict_loading(family("gemma2"))


def test_prefill_logits(family, prefill_without_logits):
    prefill_without_logits(family("gemma2"))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "changes",
    [
        {"attn_logit_softcapping": None},
        {"final_logit_softcapping": None},
        {"attn_logit_softcapping": ..., "final_logit_softcapping": ...},  # defaults, not none
        {"query_pre_attn_scalar": ...},
        {"query_pre_attn_scalar": 40},
        {"layer_types": ["full_attention", "sliding_attention"] * 2},
        {"layer_types": ["full_attention"] * 4},
        {"layer_types": ["sliding_attention"] * 4},
        {"hidden_activation": "gelu"},
        {"hidden_act": "silu"},  # not read: hidden_activation counts
        {"attention_bias": True},
        {"tie_word_embeddings": False},
        {"rope_theta": ..., "rope_parameters": {"rope_type": "default", "rope_theta": 311.0}},
    ],
    ids=str,
)
def test_config_values_are_taken_over(family, layout, changes):
    family("gemma2").but(**changes).assert_same(layout=layout)


@pytest.mark.parametrize(
    "changes",
    [
        {"attn_logit_softcapping": 2.4},
        {"final_logit_softcapping": 1.8},
        {"query_pre_attn_scalar": 24},
        {"rms_norm_eps": 4.1e-3},
        {"rope_theta": 6200.0},
        {"layer_types": ["full_attention", "sliding_attention"] * 2},
        {"hidden_activation": "gelu"},
    ],
    ids=str,
)
def test_tiny_makes_it_observable(family, changes):
    """A port that reads a value slightly wrong is far from the reference."""
    tiny = family("gemma2")
    wrong = build_model(tiny.port, tiny.but(**changes).config, tiny.state, mask_cache_size=70)
    assert tiny.error(tiny.run(wrong)) > 1e-4


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"use_bidirectional_attention": True}, "use_bidirectional_attention=True"),
        ({"layer_types": ["full_attention"] * 3}, "layer_types="),
        ({"layer_types": ["chunked_attention"] * 4}, "chunked_attention"),
        ({"sliding_window": None}, "sliding_window=None"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "'yarn'"),
        (
            {"rope_parameters": {"sliding_attention": {"rope_theta": 1.0}, "full_attention": {}}},
            "one set of values for all layers",
        ),
    ],
)
def test_config_values_are_refused(family, changes, words):
    with pytest.raises(ValueError, match=r"HF config: .*expected") as error:
        family("gemma2").but(**changes).mapped()
    assert words in str(error.value)
