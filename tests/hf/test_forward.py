"""What a Hugging Face model's forward does outside of its layers, read by running it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeverify.hf.forward import Forward, forward_of
from edgeverify_models import CATALOGUE, load

SMALL = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_hidden_layers": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "pad_token_id": 0,
    "vocab_size": 101,
}
NO_WINDOW = (None,) * 4
# Keys that some family reads, and llamafied or re-saved checkpoints of other families keep.
FOREIGN_KEYS: dict[str, Any] = {
    "sliding_window": 8,
    "use_sliding_window": True,
    "max_window_layers": 28,
    "layer_types": ["sliding_attention"] * 4,
    "partial_rotary_factor": 0.5,
    "final_logit_softcapping": 30.0,
    "attn_logit_softcapping": 50.0,
    "embedding_multiplier": 12.0,
    "no_rope_layers": [1, 1, 1, 0],
}


def of(family: str, **changes: Any) -> Forward:
    return forward_of({**SMALL, "model_type": family, **changes})


@given(keys=st.sets(st.sampled_from(sorted(FOREIGN_KEYS)), min_size=1))
@settings(max_examples=12, deadline=None)
def test_keys_that_llama_does_not_read_change_nothing(keys: set[str]) -> None:
    assert of("llama", **{key: FOREIGN_KEYS[key] for key in keys}) == of("llama")


@pytest.mark.parametrize("window", [3, 8, 11, 12, 13, 4096])
def test_a_window_that_the_family_reads_is_read(window: int) -> None:
    """12 tokens are run: one fewer, as many, and more than they show."""
    assert of("mistral", sliding_window=window).windows == (window,) * 4
    gemma2 = of("gemma2", sliding_window=window)
    assert gemma2.windows == (window, None, window, None)
    assert gemma2.window == window


@pytest.mark.parametrize(
    ("family", "changes", "windows"),
    [
        ("mistral", {"sliding_window": None}, NO_WINDOW),
        ("qwen2", {"sliding_window": 4096}, NO_WINDOW),
        ("qwen2", {"sliding_window": 4096, "use_sliding_window": False}, NO_WINDOW),
        (
            "qwen2",
            {"sliding_window": 4096, "use_sliding_window": True, "max_window_layers": 3},
            (None, None, None, 4096),
        ),
        ("cohere2", {"sliding_window": 512}, (512, 512, 512, None)),
        ("starcoder2", {"sliding_window": 7}, (7,) * 4),
        ("olmo2", {"sliding_window": 7}, NO_WINDOW),
    ],
)
def test_windows_of_other_families(
    family: str, changes: dict[str, Any], windows: tuple[int | None, ...]
) -> None:
    assert of(family, **changes).windows == windows


@pytest.mark.parametrize(
    ("family", "changes", "rotated"),
    [
        ("phi", {"partial_rotary_factor": 0.5}, 8),
        ("stablelm", {"partial_rotary_factor": 0.25}, 4),
        ("nemotron", {"partial_rotary_factor": 0.75}, 12),
        ("llama", {"partial_rotary_factor": 0.5}, 16),
        ("gemma", {"partial_rotary_factor": 0.5}, 16),
    ],
)
def test_a_rotary_share_counts_where_it_is_read(
    family: str, changes: dict[str, Any], rotated: int
) -> None:
    assert of(family, **changes).rotated == (rotated,) * 4


def test_a_softcap_counts_where_it_is_read() -> None:
    assert of("gemma2", final_logit_softcapping=30.0).softcap == 30.0
    assert of("gemma2", final_logit_softcapping=1.7).softcap == 1.7
    assert of("gemma2", final_logit_softcapping=None).softcap is None
    assert of("gemma", final_logit_softcapping=30.0).softcap is None
    assert of("mixtral").softcap is None


def test_a_factor_of_the_logits_is_no_softcap() -> None:
    for family, changes in (("cohere", {"logit_scale": 0.25}), ("granite", {"logits_scaling": 8})):
        found = of(family, **changes)
        assert found.softcap is None
        assert found.unclear == {}


def test_a_factor_of_the_embeddings_is_measured() -> None:
    assert of("granite", embedding_multiplier=12.5).embedding_factor == 12.5
    assert of("llama").embedding_factor == 1.0


def test_a_model_of_another_build_is_unclear_and_no_error() -> None:
    found = of("gptj", n_embd=64, n_layer=2, n_head=4, rotary_dim=4)
    assert {"windows", "rotated", "embedding_factor"} <= found.unclear.keys()
    assert all("cannot be recorded" in reason for reason in found.unclear.values())
    assert found.window is None


@pytest.mark.parametrize("port", CATALOGUE)
def test_every_size_of_every_port_is_clear(port: str) -> None:
    for hf_config in load(port).hf_configs.values():
        found = forward_of(hf_config)
        assert found.unclear == {}
        assert found.embedding_factor == 1.0
        window = hf_config["sliding_window"] if port == "gemma2" else None
        assert found.window == window
        assert found.softcap == hf_config.get("final_logit_softcapping")
